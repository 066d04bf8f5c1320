"""Prompts in a syntax of their own, from the call to the latents."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfumato.adapters.files import AdapterFile
from sfumato.adapters.loading import load
from sfumato.errors import InputError, UnknownKeywordError
from tests.adapters.files_like import kohya_file
from tests.pipelines.tiny import seeded, tiny_pipeline, tiny_scheduler

STEPS = 4


def latents(pipe: Any, prompt: Any, *seeds: int, **options: Any) -> Tensor:
    options = {"prompt_syntax": "a1111", "num_inference_steps": STEPS, **options}
    return pipe(prompt, generator=seeded(*seeds or (1,)), output_type="latent", **options).images


def close(a: Tensor, b: Tensor) -> bool:
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item() < 1e-4


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(scheduler=tiny_scheduler("DDIMScheduler"))


def lora(pipe: Any, seed: int) -> dict[str, Tensor]:
    """A LoRA on both networks, strong enough to be seen."""
    return kohya_file({"unet": pipe.unet, "text_encoder": pipe.text_encoder}, "lora", seed)


def test_prompts_are_literal_unless_asked_otherwise(pipe: Any) -> None:
    literal = latents(pipe, "a (red:1.5) [cat]", prompt_syntax=None)
    assert torch.equal(literal, latents(pipe, "a (red:1.5) [cat]", prompt_syntax="literal"))
    assert not close(literal, latents(pipe, "a (red:1.5) [cat]"))
    plain = latents(pipe, "a red cat", prompt_syntax=None)
    for syntax in ("a1111", "a1111-no-norm", "comfyui"):
        assert torch.equal(plain, latents(pipe, "a red cat", prompt_syntax=syntax))


def test_a_prompt_is_edited_at_its_step(pipe: Any) -> None:
    embeds = {
        word: torch.cat(pipe.encode_prompt(f"a {word} cat", "cpu", 1, True)[::-1])
        for word in ("red", "blue")
    }

    def exchange(pipe: Any, step: int, timestep: Any, tensors: Any) -> Any:
        return {"prompt_embeds": embeds["blue"]} if step == 1 else {}

    by_hand = latents(
        pipe,
        "a red cat",
        prompt_syntax=None,
        callback_on_step_end=exchange,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
    )
    assert close(by_hand, latents(pipe, "a [red:blue:2] cat"))
    assert close(by_hand, latents(pipe, "a [red:blue:0.5] cat"))
    assert not close(by_hand, latents(pipe, "a [red:blue:3] cat"))


def test_parts_are_weighed_against_the_negative_prompt(pipe: Any) -> None:
    one = latents(pipe, "a cat", negative_prompt="x")
    assert close(one, latents(pipe, "a cat AND a dog :0", negative_prompt="x"))
    assert close(one, latents(pipe, "a cat :0.25 AND a cat :0.75", negative_prompt="x"))
    assert close(one, latents(pipe, "a cat :3 AND x :5", negative_prompt="x", guidance_scale=2.5))
    both = latents(pipe, "a cat AND a dog", negative_prompt="x")
    assert not close(both, one)
    assert not close(
        both, latents(pipe, "a cat AND a dog", negative_prompt="x", guidance_rescale=1)
    )


def test_a_picture_in_a_batch_is_what_it_is_alone(pipe: Any) -> None:
    prompts = ["a cat AND a [red|blue] dog :0.5", "the (sea:1.4)", "x BREAK y"]
    batch = latents(pipe, prompts, 1, 2, 3)
    for index, prompt in enumerate(prompts[:2]):
        # Alone without the chunks that fill up beside "x BREAK y".
        same_length = [prompt, prompts[2]]
        alone = latents(pipe, same_length, index + 1, 3)[:1]
        assert close(batch[index : index + 1], alone)


def test_images_per_prompt_are_next_to_each_other(pipe: Any) -> None:
    four = latents(pipe, ["a AND b", "c"], 1, 2, 3, 4, num_images_per_prompt=2)
    assert close(four[2:], latents(pipe, "c", 3, 4, num_images_per_prompt=2))


def test_samplers_with_two_calls_per_step_count_steps() -> None:
    pipe = tiny_pipeline(scheduler=tiny_scheduler("HeunDiscreteScheduler"))
    seen: list[int] = []

    def watch(pipe: Any, step: int, timestep: Any, tensors: Any) -> None:
        seen.append(hash(tensors["prompt_embeds"].sum().item()))

    latents(
        pipe,
        "[a:b:0.5]",
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
    )
    assert seen == [seen[0]] * 4 + [seen[-1]] * 3 and seen[0] != seen[-1]


def test_a_tag_lets_an_adapter_act_on_its_picture_alone(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    plain = latents(pipe, ["a cat", "a cat"], 1, 1)
    save_file(lora(pipe, 5), tmp_path / "ink.safetensors")
    loras = {"ink": tmp_path / "ink.safetensors", "oil": tmp_path / "missing.safetensors"}
    prompts = ["a cat", "a cat<lora:ink:0.7>"]
    tagged = latents(pipe, prompts, 1, 1, loras=loras)
    assert close(tagged[0], plain[0]) and not close(tagged[1], plain[1])
    assert pipe.get_active_adapters() == []
    assert torch.equal(latents(pipe, ["a cat", "a cat"], 1, 1), plain)

    pipe.set_adapters("ink", 0.7)
    assert close(latents(pipe, "a cat"), tagged[1:])
    # A tag says how strongly, also of what acts anyway.
    assert close(latents(pipe, "a cat <lora:ink:0>"), plain[:1])


def test_tags_have_a_strength_for_each_network() -> None:
    pipe = tiny_pipeline()
    networks = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    load(networks, AdapterFile(lora(pipe, 5)), "ink")
    pipe.set_adapters([])
    plain, both = latents(pipe, "a cat"), latents(pipe, "a cat<lora:ink>")
    text, image = latents(pipe, "a cat<lora:ink:1:0>"), latents(pipe, "a cat<lora:ink:0:1>")
    assert not any(
        close(a, b) for a, b in ((plain, text), (plain, image), (text, image), (both, text))
    )
    pipe.set_adapters("ink", [{"text_encoder": 0.0, "unet": 1.0}])
    assert close(image, latents(pipe, "a cat"))


def test_an_unknown_name_in_a_tag_is_an_error_that_lists_those_there_are(pipe: Any) -> None:
    with pytest.raises(InputError, match=r"no LoRA 'inc'.*there are: ink, oil.*mean 'ink'"):
        latents(pipe, "a<lora:inc:1>", loras={"ink": "a", "oil": "b"})
    with pytest.raises(InputError, match="loras"):
        latents(pipe, "a", loras=["ink"])
    assert close(
        latents(pipe, "a<lora:x:1>", prompt_syntax=None),
        latents(pipe, r"a<lora:x:1>", prompt_syntax="comfyui"),
    )


def test_calls_in_two_threads_draw_what_they_draw_alone() -> None:
    pipe = tiny_pipeline()
    networks = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    load(networks, AdapterFile(lora(pipe, 5)), "ink")
    prompts = ["a [cat|dog] <lora:ink:1>", "a (cat:1.3) AND b", "<lora:ink:-1>sea", "plain"]
    alone = [latents(pipe, prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda prompt: latents(pipe, prompt), prompts))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_lists_and_negative_prompts_keep_diffusers_rules(pipe: Any) -> None:
    with pytest.raises(InputError, match="batch size"):
        latents(pipe, ["a", "b"], 1, 2, negative_prompt=["c"])
    with pytest.raises(TypeError, match="same type"):
        latents(pipe, "a", negative_prompt=["c"])
    with pytest.raises(UnknownKeywordError, match="prompt_syntax"):
        latents(pipe, "a", prompt_sintax="a1111")
    with pytest.raises(InputError, match="prompt_syntax"):
        latents(pipe, "a", prompt_syntax="compel")


def test_embeddings_of_other_libraries_go_in_as_they_are(pipe: Any) -> None:
    torch.manual_seed(0)
    embeds, negative = torch.randn(2, 1, 154, 32)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    found = latents(pipe, None, prompt_syntax="a1111", **given)
    assert torch.equal(found, latents(pipe, None, prompt_syntax=None, **given))
