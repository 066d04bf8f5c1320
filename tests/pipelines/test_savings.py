"""What a call may leave out: exact where nothing is left out, and less work where something is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato import HeunDiscreteScheduler, IntervalGuidance, PerturbedAttentionGuidance
from sfumato.errors import InputError
from sfumato.models.feature_reuse import DeepFeatures, most_layers, reusing
from sfumato.models.token_merging import match
from sfumato.pipelines.savings import DeepCache, TextGate, TokenMerging
from tests.pipelines.tiny import tiny_pipeline, tiny_scheduler, tiny_unet

#: Attention at every size, as in Stable Diffusion.
BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}


def pipeline() -> Any:
    return tiny_pipeline(unet=tiny_unet(**BLOCKS), scheduler=tiny_scheduler("DDIMScheduler"))


def draw(pipe: Any, steps: int = 6, **options: Any) -> Tensor:
    seed = torch.Generator().manual_seed(1)
    arguments = {"guidance_scale": 4.0, "num_inference_steps": steps, "output_type": "latent"}
    return pipe("a cat", generator=seed, **{**arguments, **options}).images


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[int]]:
    """The batch sizes with which a module is called."""
    sizes: list[int] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    try:
        yield sizes
    finally:
        hook.remove()


@pytest.mark.parametrize("saving", [DeepCache(1), TokenMerging(0.0), TextGate(1.0)])
def test_saving_nothing_changes_nothing(saving: Any) -> None:
    pipe = pipeline()
    torch.testing.assert_close(draw(pipe, savings=saving), draw(pipe), rtol=0, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("freeu", [False, True])
def test_a_shallow_pass_over_the_same_latents_is_exact(layers: int, freeu: bool) -> None:
    unet = tiny_unet(**BLOCKS, layers_per_block=layers)
    if freeu:
        unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, unet.config.cross_attention_dim)
    assert most_layers(unet) == layers
    for depth in range(layers + 1):
        features = DeepFeatures(depth)
        with torch.no_grad(), reusing(features):
            full = unet(x, 7, text).sample
            features.shallow = True
            shallow = unet(x, 7, text).sample
        torch.testing.assert_close(shallow, full, rtol=0, atol=1e-6)


def test_deep_layers_are_computed_in_every_second_step_only() -> None:
    pipe = pipeline()
    plain = draw(pipe, steps=7)
    with calls_of(pipe.unet.mid_block) as calls:
        saved = draw(pipe, steps=7, savings=DeepCache(2))
    assert calls == [2, 2, 2, 2]
    assert not torch.equal(saved, plain)
    with calls_of(pipe.unet.mid_block) as calls:
        draw(pipe, steps=8, savings=DeepCache(4, start=0.5))
    assert len(calls) == 5


def test_deep_features_serve_steps_without_guidance_and_several_questions_a_step() -> None:
    pipe = pipeline()
    with calls_of(pipe.unet.mid_block) as calls:
        draw(pipe, steps=6, savings=DeepCache(2), guidance=IntervalGuidance(0.0, 0.5))
    assert calls == [2, 2, 1]
    with calls_of(pipe.unet.mid_block) as calls:
        draw(pipe, steps=6, savings=DeepCache(2), guidance=IntervalGuidance(0.5, 1.0))
    assert calls == [1, 1, 2, 2]  # the first guided step finds no features for both prompts
    with calls_of(pipe.unet.mid_block) as calls:
        draw(pipe, steps=4, savings=DeepCache(2), guidance=PerturbedAttentionGuidance(2.0))
    assert calls == [2, 1] * 2


def test_a_depth_that_the_network_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match="`depth` of DeepCache is 9, but this UNet has"):
        draw(pipeline(), savings=DeepCache(2, depth=9))


def slow_merge(
    tokens: Tensor, height: int, width: int, ratio: float, choice: list[int]
) -> tuple[Tensor, dict[int, int]]:
    """Token merging of one sample, token by token: results in place, and who went where."""
    chosen = [
        (2 * row + choice[row * (width // 2) + column] // 2) * width
        + 2 * column + choice[row * (width // 2) + column] % 2
        for row in range(height // 2) for column in range(width // 2)
    ]  # fmt: skip
    others = [i for i in range(height * width) if i not in chosen]
    likeness = nn.functional.normalize(tokens, dim=1) @ nn.functional.normalize(tokens, dim=1).T
    best = {i: max(chosen, key=lambda j: likeness[i, j].item()) for i in others}
    ranked = sorted(others, key=lambda i: -likeness[i, best[i]].item())
    went = {i: best[i] for i in ranked[: int(ratio * height * width)]}
    means = {
        j: torch.stack([tokens[j], *(tokens[i] for i, target in went.items() if target == j)])
        for j in chosen
    }
    rows = [means[j].mean(0) if j in means else tokens[j] for j in range(height * width)]
    return torch.stack([rows[went.get(i, i)] for i in range(height * width)]), went


@pytest.mark.parametrize(("height", "width"), [(4, 4), (6, 4), (5, 7)])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.7])
def test_merging_agrees_with_doing_it_token_by_token(height: int, width: int, ratio: float) -> None:
    generator = torch.Generator().manual_seed(height * width)
    tokens = torch.randn(2, height * width, 6, generator=generator)
    choice = torch.randint(4, ((height // 2) * (width // 2),), generator=generator)
    merging = match(tokens, height, width, ratio, choice)
    found = merging.unmerge(merging.merge(tokens))
    for sample in range(2):
        expected, went = slow_merge(tokens[sample], height, width, ratio, choice.tolist())
        torch.testing.assert_close(found[sample], expected)
        assert merging.merge(tokens).shape[1] == height * width - len(went)


def test_merging_is_exact_where_all_neighbours_say_the_same() -> None:
    unet = tiny_unet(**BLOCKS)
    layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    width = layer.to_q.in_features
    tokens = torch.randn(1, 1, width).expand(2, 64, width)
    merging = match(tokens, 8, 8, 0.5, torch.zeros(16, dtype=torch.long))
    with torch.no_grad():
        merged = merging.unmerge(layer(merging.merge(tokens)))
        torch.testing.assert_close(merged, layer(tokens), rtol=0, atol=1e-6)


def test_self_attention_of_the_largest_maps_sees_fewer_tokens() -> None:
    pipe = pipeline()
    seen: dict[str, int] = {}

    def note(name: str) -> Any:
        return lambda _, inputs: seen.update({name: inputs[0].shape[1]})

    blocks = pipe.unet.down_blocks
    for name, block in (("large", blocks[0]), ("small", pipe.unet.mid_block)):
        block.attentions[0].transformer_blocks[0].attn1.to_q.register_forward_pre_hook(note(name))
    draw(pipe, steps=1)
    plain = dict(seen)
    assert plain["large"] > plain["small"]
    draw(pipe, steps=1, savings=TokenMerging(0.5))
    assert seen == {"large": plain["large"] // 2, "small": plain["small"]}
    assert torch.equal(draw(pipe, savings=TokenMerging(0.5)), draw(pipe, savings=TokenMerging(0.5)))


def test_after_the_gate_nothing_is_guided_and_the_text_is_not_looked_at() -> None:
    pipe = pipeline()
    cross = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    with calls_of(pipe.unet.conv_in) as rows, calls_of(cross.to_q) as looks:
        draw(pipe, steps=6, savings=TextGate(0.5))
    assert rows == [2, 2, 2, 1, 1, 1]
    assert looks == [2, 2, 2]


def test_savings_go_together_with_each_other_and_with_samplers_of_two_calls() -> None:
    pipe = pipeline()
    together = [DeepCache(2), TokenMerging(0.4), TextGate(0.6)]
    assert torch.isfinite(draw(pipe, savings=together)).all()
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    assert torch.isfinite(draw(pipe, savings=together)).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DeepCache(0), "`interval` of DeepCache has to be a number from 1"),
        (lambda: DeepCache(2, depth=-1), "`depth` of DeepCache"),
        (lambda: DeepCache(2, stop=1.5), "`stop` of DeepCache"),
        (lambda: TokenMerging(0.8), "`ratio` of TokenMerging has to be a number from 0 to 0.75"),
        (lambda: TextGate(float("nan")), "`stop` of TextGate"),
        (lambda: draw(pipeline(), savings="fast"), "`savings` has to be a saving"),
        (lambda: draw(pipeline(), savings=[TextGate(), TextGate(0.3)]), "two of a kind"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()
