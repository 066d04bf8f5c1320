"""Twice as large among latents, against diffusers."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any, cast

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import InputError
from sfumato.pipelines.base import DiffusionPipeline
from sfumato.pipelines.latent_upscale import StableDiffusionLatentUpscalePipeline
from tests.parity.calls import assert_alike, call_of, picture, prompts_of
from tests.parity.oracle_pipeline import distance, oracle_of, oracle_scheduler
from tests.parity.surface import (
    assert_same_attributes,
    assert_same_complaint,
    assert_same_signatures,
)
from tests.parity.test_k_unet import UPSCALER
from tests.pipelines.tiny import WIDTH, seeded, tiny_parts, tiny_scheduler, tiny_unet

#: Without fresh noise: diffusers draws that without the generator.
SCHEDULERS = ("EulerDiscreteScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler")
SMALL = {**UPSCALER, "layers_per_block": 1, "sample_size": 16}


@cache
def _pair() -> tuple[Any, Any]:
    parts = tiny_parts(1)
    parts["unet"] = tiny_unet(7, **SMALL)
    parts["scheduler"] = tiny_scheduler(SCHEDULERS[0], prediction_type="sample")
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    ours = StableDiffusionLatentUpscalePipeline(**{name: parts[name] for name in names})
    ours.set_progress_bar_config(disable=True)
    return ours, oracle_of(ours)


def _with_scheduler(name: str, **fields: Any) -> tuple[Any, Any]:
    ours, oracle = _pair()
    ours.scheduler = tiny_scheduler(name, **{"prediction_type": "sample", **fields})
    oracle.scheduler = oracle_scheduler(ours.scheduler)
    return ours, oracle


def _call(rng: random.Random, oracle: Any) -> dict[str, Any]:
    arguments = call_of(rng, oracle)
    arguments.pop("latents", None)
    count = prompts_of(arguments)
    latents = rng.random() < 0.5
    if latents:
        arguments["image"] = torch.randn(count, 4, 8, 12, generator=seeded(rng.randrange(99)))
        if rng.random() < 0.5:
            noise = torch.randn(count, 4, 16, 24, generator=seeded(rng.randrange(99)))
            arguments["latents"] = noise
    else:
        image = picture(rng, 16, 24, count)
        arguments["image"] = image[None] if getattr(image, "ndim", 4) == 3 else image
    if arguments["prompt"] is None:
        pooled = torch.randn(2, count, WIDTH, generator=seeded(rng.randrange(99)))
        arguments["pooled_prompt_embeds"] = pooled[0]
        arguments["negative_pooled_prompt_embeds"] = pooled[1]
        arguments["guidance_scale"] = 3.0
    arguments["seeds"] = (
        arguments["seeds"][:1] if len(arguments["seeds"]) != count else (arguments["seeds"])
    )
    return arguments


@pytest.mark.parametrize("name", SCHEDULERS)
def test_random_calls_give_the_latents_of_diffusers(name: str) -> None:
    rng = random.Random(name)
    for case in range(5):
        fields = {
            "timestep_spacing": rng.choice(["leading", "linspace", "trailing"]),
            "use_karras_sigmas": rng.random() < 0.3,
            # Only Euler's takes finished pictures; the others mistake them in the same way.
            "prediction_type": rng.choice(["sample", "original_sample"])
            if name == SCHEDULERS[0]
            else "epsilon",
        }
        pair = _with_scheduler(name, **fields)
        arguments = _call(rng, pair[1])
        assert_alike(pair, arguments, f"case {case}: {fields} {arguments}")


def test_pictures_are_those_of_diffusers() -> None:
    image = Image.fromarray((np.random.default_rng(0).random((16, 24, 3)) * 255).astype(np.uint8))
    results = []
    for pipeline in _with_scheduler(SCHEDULERS[0]):
        result = pipeline(
            "a boat",
            image=image,
            num_inference_steps=3,
            generator=seeded(3),
            output_type="pt",
            return_dict=False,
        )
        assert len(result) == 1
        results.append(result[0])
    assert results[0].shape == (1, 3, 32, 48)
    assert distance(*results) < 1e-4


def test_the_interface_is_that_of_diffusers() -> None:
    ours = type(_pair()[0])
    names = ("__init__", "__call__", "check_inputs", "prepare_latents")
    assert_same_signatures(ours, *names)
    assert_same_attributes(ours)


def test_prompts_are_embedded_as_in_diffusers() -> None:
    ours, oracle = _pair()
    made = [p.encode_prompt(["a boat", "x"], "cpu", True, ["", "fog"]) for p in (ours, oracle)]
    assert all(distance(a, b) < 1e-5 for a, b in zip(*made, strict=True))


WRONG_CALLS: dict[str, dict[str, Any]] = {
    "kind of picture": {"image": "small.png"},
    "batch": {"prompt": ["x", "y"]},
    "callback_steps": {"callback_steps": None},
    "latents": {"latents": torch.zeros(1, 4, 4, 4)},
    "channels": {"image": torch.zeros(1, 5, 8, 8)},
    "both": {"prompt_embeds": torch.zeros(1, 77, WIDTH)},
    "pooled": {"prompt": None, "prompt_embeds": torch.zeros(1, 77, WIDTH)},
    "negative pooled": {"negative_prompt_embeds": torch.zeros(1, 77, WIDTH)},
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_raises_what_diffusers_raises(name: str) -> None:
    call = {"prompt": "x", "image": torch.zeros(1, 4, 8, 8), "num_inference_steps": 2}
    assert_same_complaint(_pair(), {**call, **WRONG_CALLS[name]})


def test_seeds_give_each_picture_as_it_is_alone_and_prompts_are_literal() -> None:
    ours, _ = _with_scheduler(SCHEDULERS[0])
    small = torch.randn(2, 4, 8, 8, generator=seeded(0))
    call: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent"}
    both = ours(["a boat", "a cat"], image=small, seeds=[4, 5], **call).images
    alone = ours("a cat", image=small[1:], seeds=5, **call).images
    assert torch.allclose(both[1:], alone, atol=1e-4)
    with pytest.raises(InputError, match="literally"):
        ours("(a boat:1.2)", image=small[:1], prompt_syntax="a1111", **call)


def test_a_scheduler_that_expects_something_else_is_complained_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours, _ = _with_scheduler(SCHEDULERS[0], prediction_type="epsilon")
    ours("x", image=torch.zeros(1, 4, 8, 8), num_inference_steps=1, output_type="latent")
    assert "prediction_type" in caplog.text


def test_folders_of_diffusers_are_loaded_and_ours_there(tmp_path: Path) -> None:
    ours, oracle = _with_scheduler(SCHEDULERS[0])
    oracle.save_pretrained(tmp_path / "theirs")
    again: Any = DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert type(again) is type(ours)
    again.save_pretrained(tmp_path / "ours")
    back = cast(Any, diffusers).DiffusionPipeline.from_pretrained(tmp_path / "ours")
    back.set_progress_bar_config(disable=True)
    call = {"prompt": "a boat", "image": torch.randn(1, 4, 8, 8, generator=seeded(0))}
    call |= {"num_inference_steps": 2, "output_type": "latent"}
    assert (
        distance(
            again(**call, generator=seeded(1)).images, back(**call, generator=seeded(1)).images
        )
        < 1e-4
    )
