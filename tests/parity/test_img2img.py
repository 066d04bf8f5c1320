"""Image to image against diffusers: the same weights, pictures and draws give the same latents."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch

import sfumato.schedulers
from sfumato.pipelines.img2img import StableDiffusionImg2ImgPipeline
from tests.parity.calls import (
    assert_alike,
    call_with_strength,
    picture,
    prompts_of,
    scheduler_fields,
)
from tests.parity.oracle_pipeline import distance, oracle_of, oracle_scheduler
from tests.parity.surface import (
    assert_same_attributes,
    assert_same_complaint,
    assert_same_signatures,
)
from tests.pipelines.tiny import WIDTH, seeded, tiny_parts, tiny_scheduler, tiny_unet

CASES_PER_SCHEDULER = 3
SCHEDULERS = [scheduler.name for scheduler in sfumato.schedulers.KarrasDiffusionSchedulers]


@cache
def _pair(kind: str = "plain") -> tuple[Any, Any]:
    fields = {"time_cond_proj_dim": 16} if kind == "distilled" else {}
    ours = StableDiffusionImg2ImgPipeline(**{**tiny_parts(1), "unet": tiny_unet(7, **fields)})
    ours.set_progress_bar_config(disable=True)
    return ours, oracle_of(ours)


def _with_scheduler(kind: str, name: str, **fields: Any) -> tuple[Any, Any]:
    ours, oracle = _pair(kind)
    ours.scheduler = tiny_scheduler(name, **fields)
    oracle.scheduler = oracle_scheduler(ours.scheduler)
    return ours, oracle


def _call(rng: random.Random, oracle: Any) -> dict[str, Any]:
    arguments = call_with_strength(rng, oracle)
    count = rng.choice([1, prompts_of(arguments)])
    arguments["image"] = picture(rng, rng.choice([16, 19]), 24, count)
    if rng.random() < 0.15:
        arguments["image"] = torch.randn(1, 4, 8, 10, generator=seeded(rng.randrange(99)))
    return arguments


@pytest.mark.filterwarnings("ignore:You have passed:FutureWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_random_calls_give_the_latents_of_diffusers(name: str) -> None:
    rng = random.Random(f"img2img {name}")
    for case in range(CASES_PER_SCHEDULER):
        kind = rng.choice(["plain", "plain", "distilled"])
        fields = scheduler_fields(rng, name)
        pair = _with_scheduler(kind, name, **fields)
        arguments = _call(rng, pair[1])
        wide = fields.get("rescale_betas_zero_snr")
        report = f"case {case}: {kind} {fields} {arguments}"
        assert_alike(pair, arguments, report, 2e-3 if wide else 1e-4)


@pytest.mark.parametrize(("steps", "strength"), [(3, 0.3), (2, 0.4), (8, 0.0)])
def test_a_share_below_one_step_is_the_one_call_that_pndm_has_more(
    steps: int, strength: float
) -> None:
    pair = _with_scheduler("plain", "PNDMScheduler", skip_prk_steps=True, steps_offset=1)
    image = picture(random.Random(1), 16, 16)
    call = {"prompt": "a boat", "image": image, "num_inference_steps": steps, "seeds": [1]}
    call["strength"] = strength
    assert_alike(pair, call, str(call), 1e-4)
    assert pair[0].num_timesteps == pair[1].num_timesteps == 1


@pytest.mark.parametrize("output_type", ["pt", "np"])
def test_pictures_are_those_of_diffusers(output_type: str) -> None:
    results = []
    for pipeline in _with_scheduler("plain", "DDIMScheduler"):
        images, flags = pipeline(
            "a boat",
            image=picture(random.Random(1), 16, 16),
            num_inference_steps=4,
            generator=seeded(3),
            output_type=output_type,
            return_dict=False,
        )
        assert flags is None
        results.append(torch.as_tensor(images))
    assert distance(*results) < 1e-4


def test_the_interface_is_that_of_diffusers() -> None:
    names = ("__init__", "__call__", "check_inputs", "prepare_latents")
    assert_same_signatures(StableDiffusionImg2ImgPipeline, *names)
    assert_same_attributes(StableDiffusionImg2ImgPipeline)


@pytest.mark.filterwarnings("ignore:You have passed:FutureWarning")
@pytest.mark.parametrize("seeds", [[1], [1, 2, 3, 4]])
def test_latents_are_prepared_from_the_same_draws(seeds: list[int]) -> None:
    image = torch.rand(2, 3, 16, 16, generator=seeded(0)) * 2 - 1
    results = []
    for pipeline in _with_scheduler("plain", "EulerDiscreteScheduler"):
        pipeline.scheduler.set_timesteps(5)
        timesteps, steps = pipeline.get_timesteps(5, 0.6, "cpu")
        assert steps == 3
        first, generator = timesteps[:1].repeat(4), seeded(*seeds)
        with torch.no_grad():
            results.append(
                pipeline.prepare_latents(image, first, 2, 2, torch.float32, "cpu", generator)
            )
    assert distance(*results) < 1e-5


WRONG_CALLS: dict[str, dict[str, Any]] = {
    "strength": {"prompt": "x", "strength": 1.5},
    "negative strength": {"prompt": "x", "strength": -0.1},
    "no prompt": {},
    "both prompts": {"prompt": "x", "prompt_embeds": torch.zeros(1, 77, WIDTH)},
    "tensor names": {"prompt": "x", "callback_on_step_end_tensor_inputs": ["mask"]},
    "no picture": {"prompt": "x", "image": None},
    "uneven pictures": {"prompt": ["x"] * 3, "image": torch.zeros(2, 3, 16, 16)},
    "generators": {"prompt": "x", "generator": seeded(1, 2)},
    "timesteps and sigmas": {"prompt": "x", "timesteps": [5, 1], "sigmas": [2.0, 1.0]},
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_raises_what_diffusers_raises(name: str) -> None:
    call = {"image": torch.zeros(1, 3, 16, 16), "num_inference_steps": 2, **WRONG_CALLS[name]}
    assert_same_complaint(_pair(), call)
