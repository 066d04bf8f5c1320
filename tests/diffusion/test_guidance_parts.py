"""Parts of a guidance, alone and together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.diffusion.guidance import Answer, ClassifierFree, rescale_noise_cfg
from sfumato.diffusion.guidance_attention import (
    PerturbedAttentionGuidance,
    SelfAttentionGuidance,
    attended,
    blur,
)
from sfumato.diffusion.guidance_parts import (
    CFGPlusPlus,
    DynamicThresholding,
    IntervalGuidance,
    RescaleGuidance,
)
from sfumato.diffusion.levels import Levels
from sfumato.diffusion.steering import GuidancePart, Question, Steered
from sfumato.errors import InputError
from tests.pipelines.tiny import seeded, tiny_pipeline, tiny_scheduler

LEVELS = Levels(
    level={900.0: 9.0, 500.0: 2.0, 100.0: 0.5},
    following={900.0: 2.0, 500.0: 0.5, 100.0: 0.0},
    share={900.0: 0.0, 500.0: 1 / 3, 100.0: 2 / 3},
)
X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
CONTEXT = torch.tensor([0.0, 0.0, 1.0, 1.0])


class Network:
    """Answers with ``x`` moved by the context; counts what it is asked about."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, x: Tensor, timestep: Tensor, context: Any) -> Tensor:
        self.asked.append(len(x))
        return x.sin() + context.view(-1, 1, 1, 1) * x.cos()


def answer(part: GuidancePart, time: float, scale: float = 3.0, **options: Any) -> Tensor:
    guidance = Steered(ClassifierFree(scale), [part.bind(LEVELS, None)], **options)
    return guidance(Network(), X, torch.tensor(time), CONTEXT if scale > 1 else CONTEXT[2:])


def plain(scale: float = 3.0) -> Tensor:
    return ClassifierFree(scale)(Network(), X, torch.tensor(1.0), CONTEXT)


POSITIVE = X.sin() + X.cos()


@pytest.mark.parametrize(
    ("part", "guided"),
    [
        (IntervalGuidance(), [True, True, True]),
        (IntervalGuidance(0.3, 0.6), [False, True, False]),
        (IntervalGuidance(stop=0.0), [False, False, False]),
        (IntervalGuidance(sigma_low=0.28, sigma_high=5.42), [False, True, True]),
        (IntervalGuidance(sigma_low=0.5, sigma_high=9.0), [True, True, False]),
    ],
)
def test_outside_of_an_interval_the_network_is_asked_once(
    part: IntervalGuidance, guided: list[bool]
) -> None:
    for time, inside in zip((900.0, 500.0, 100.0), guided, strict=True):
        network = Network()
        bound = [part.bind(LEVELS, None)]
        found = Steered(ClassifierFree(3.0), bound)(network, X, torch.tensor(time), CONTEXT)
        torch.testing.assert_close(found, plain() if inside else POSITIVE)
        assert network.asked == ([4] if inside else [2])
        whole = Steered(ClassifierFree(3.0), bound, separable=False)
        torch.testing.assert_close(whole(network, X, torch.tensor(time), CONTEXT), found)


def test_cfg_plus_plus_chooses_the_scale() -> None:
    part = CFGPlusPlus(0.5)
    for time, scale in ((900.0, 0.5 * 9 / 7), (500.0, 0.5 * 2 / 1.5), (100.0, 0.5)):
        expected = X.sin() + scale * X.cos()
        torch.testing.assert_close(answer(part, time), expected)


def test_rescaling_takes_its_place_among_the_parts() -> None:
    expected = rescale_noise_cfg(plain(), POSITIVE, 0.7)
    torch.testing.assert_close(answer(RescaleGuidance(0.7), 500.0), expected)
    base = ClassifierFree(3.0, rescale=0.7)
    found = Steered(base, [])(Network(), X, torch.tensor(500.0), CONTEXT)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_pictures_and_outputs_turn_into_each_other(prediction: str) -> None:
    levels = Levels(LEVELS.level, LEVELS.following, LEVELS.share, prediction)
    picture, noise = torch.randn(2, 2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    alpha, sigma = levels.weights(500.0)
    assert alpha**2 + sigma**2 == pytest.approx(1) and sigma / alpha == pytest.approx(2)
    x = alpha * picture + sigma * noise
    output = {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * picture,
        "sample": picture,
    }[prediction]
    torch.testing.assert_close(levels.to_picture(x, output, 500.0), picture)
    torch.testing.assert_close(levels.to_output(x, picture, 500.0), output)


@pytest.mark.parametrize("separate", [True, False])
def test_thresholding_keeps_the_range_of_the_smaller_scale(separate: bool) -> None:
    part = DynamicThresholding(2.0, percentile=0.9, separate_channels=separate)
    found = LEVELS.to_picture(X, answer(part, 500.0, scale=12.0), 500.0)
    target, mimic = (LEVELS.to_picture(X, plain(scale), 500.0) for scale in (12.0, 2.0))
    for picture in range(2):
        for part_ in range(4) if separate else [slice(None)]:
            high, low = target[picture, part_], mimic[picture, part_]
            centred = high - high.mean()
            wanted = (low - low.mean()).abs().max()
            reach = torch.quantile(centred.abs().flatten(), 0.9)
            bound = max(wanted, reach)
            expected = centred.clamp(-bound, bound) / bound * wanted + high.mean()
            torch.testing.assert_close(found[picture, part_], expected, rtol=1e-4, atol=1e-5)


def test_thresholding_changes_nothing_at_the_scale_that_it_mimics() -> None:
    for part in (DynamicThresholding(3.0), DynamicThresholding(1.0, share=0.0)):
        torch.testing.assert_close(answer(part, 500.0), plain(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(answer(DynamicThresholding(2.0), 500.0, scale=1.0), POSITIVE)


def test_a_question_can_be_asked_again_about_either_half() -> None:
    weights = ((1.0, 0.5), (0.2, 0.0))
    context = torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0, 2.0])
    for base, given in (
        (ClassifierFree(3.0), CONTEXT),
        (ClassifierFree(3.0, weights=weights), context),
        (ClassifierFree(1.0), CONTEXT[2:]),
    ):
        for separable in (True, False):
            said = base.ask(Network(), X, torch.tensor(5.0), given)
            question = Question(Network(), X, torch.tensor(5.0), given, base, said, 3.0, separable)
            torch.testing.assert_close(question.ask_positive(), said.positive)
            weaker = said.positive if said.negative is None else said.negative
            torch.testing.assert_close(question.ask_weaker(X), weaker)


def test_blurring_keeps_the_mean_of_a_flat_picture_and_works_on_small_ones() -> None:
    flat = torch.full((1, 2, 7, 7), 3.0)
    torch.testing.assert_close(blur(flat, 1.0), flat)
    for side in (1, 2, 3, 5):
        assert blur(torch.rand(1, 2, side, side), 1.0).shape == (1, 2, side, side)


def test_attention_is_spread_over_the_latents() -> None:
    weights = torch.full((1, 2, 8, 8), 0.1)
    weights[..., 0] = 0.5
    mask = attended(weights, (3, 8), 1.0)
    assert mask.shape == (1, 1, 3, 8)
    assert mask[0, 0, :2, :2].min() == 1 and mask.sum() == 4


def test_levels_come_from_the_scheduler() -> None:
    for name in ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        scheduler = tiny_scheduler(name)
        scheduler.set_timesteps(4)
        levels = Levels.of(scheduler, scheduler.timesteps)
        times = [float(t) for t in scheduler.timesteps]
        assert [levels.share[t] for t in times] == [0, 0.25, 0.5, 0.75]
        for before, after in pairwise(times):
            assert levels.following[before] == levels.level[after] < levels.level[before]
        late = Levels.of(scheduler, scheduler.timesteps[2:])
        assert late.level[times[2]] == levels.level[times[2]]


# -- in a pipeline -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(scheduler=tiny_scheduler("DDIMScheduler"))


def latents(pipe: Any, *parts: GuidancePart, **options: Any) -> Tensor:
    given = {"num_inference_steps": 3, "generator": seeded(1), "output_type": "latent"}
    return pipe("a cat", guidance=parts, **{**given, **options}).images


def test_parts_go_together_and_leave_the_network_as_it_was(pipe: Any) -> None:
    before = latents(pipe)
    parts = (
        PerturbedAttentionGuidance(2.0),
        SelfAttentionGuidance(0.5),
        DynamicThresholding(4.0),
        IntervalGuidance(0.0, 0.5),
    )
    whole = latents(pipe, *parts)
    for left_out in range(len(parts)):
        rest = [part for index, part in enumerate(parts) if index != left_out]
        assert not torch.equal(latents(pipe, *rest), whole)
    assert torch.equal(latents(pipe), before)


def test_parts_meet_prompts_with_parts_and_several_pictures(pipe: Any) -> None:
    options = {"prompt_syntax": "a1111", "num_images_per_prompt": 2, "generator": seeded(1, 2)}
    pag = PerturbedAttentionGuidance(2.0)
    found = pipe(
        "a cat AND a [red|blue] dog :0.5",
        guidance=[pag, SelfAttentionGuidance()],
        num_inference_steps=2,
        output_type="latent",
        **options,
    ).images
    assert found.shape[0] == 2 and bool(torch.isfinite(found).all())


def test_calls_in_two_threads_are_guided_as_alone(pipe: Any) -> None:
    kinds = [(), (PerturbedAttentionGuidance(3.0),), (SelfAttentionGuidance(),), ()]
    alone = [latents(pipe, *parts) for parts in kinds]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda parts: latents(pipe, *parts), kinds))
    assert all(map(torch.equal, alone, together))


def test_mistakes_are_told(pipe: Any) -> None:
    with pytest.raises(InputError, match=r"matches 'attic'.*mid_block"):
        latents(pipe, PerturbedAttentionGuidance(layers=["mid", "attic"]))
    with pytest.raises(InputError, match="no pattern"):
        latents(pipe, PerturbedAttentionGuidance(layers="("))
    with pytest.raises(InputError, match="`guidance`"):
        pipe("a", guidance=["PAG"])
    for make in (
        lambda: PerturbedAttentionGuidance(-1),
        lambda: SelfAttentionGuidance(float("nan")),
        lambda: IntervalGuidance(start=2),
        lambda: CFGPlusPlus("1"),  # pyright: ignore[reportArgumentType]
        lambda: RescaleGuidance(1.1),
        lambda: DynamicThresholding(percentile=float("inf")),
    ):
        with pytest.raises(InputError, match="has to be a number"):
            make()


def test_an_answer_without_a_negative_half_is_left_alone() -> None:
    said = Answer(None, X)
    assert ClassifierFree(1.0).guided(said, 5.0) is X
    assert ClassifierFree(1.0, rescale=1.0).rescaled(X, said) is X
