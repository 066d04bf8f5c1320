"""Whole pipelines against diffusers: the same weights and arguments give the same latents."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import sfumato.schedulers
from sfumato.pipelines.callbacks import SDCFGCutoffCallback
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.parity.calls import call_arguments, latents_of, scheduler_fields
from tests.parity.oracle_pipeline import distance, oracle_of, oracle_scheduler
from tests.pipelines.tiny import seeded, tiny_pipeline, tiny_scheduler, tiny_unet

UNETS: dict[str, dict[str, Any]] = {
    "1.x": {},
    "2.x": {
        "use_linear_projection": True,
        "attention_head_dim": (2, 4),
        "upcast_attention": True,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    "distilled": {"time_cond_proj_dim": 16, "layers_per_block": 2},
}
CASES_PER_SCHEDULER = 6
TOLERANCE = 1e-4


@cache
def _pair(kind: str) -> tuple[StableDiffusionPipeline, Any]:
    ours = tiny_pipeline(1, unet=tiny_unet(7, **UNETS[kind]))
    return ours, oracle_of(ours)


def _with_scheduler(kind: str, name: str, **fields: Any) -> tuple[StableDiffusionPipeline, Any]:
    ours, oracle = _pair(kind)
    ours.scheduler = tiny_scheduler(name, **fields)
    oracle.scheduler = oracle_scheduler(ours.scheduler)
    return ours, oracle


#: Those that draw with a Stable Diffusion model: not EDM's networks, first consistency models,
#: or the way back.
DRAWING = [
    name
    for name in sfumato.schedulers.CLASS_NAMES
    if hasattr(diffusers, name) and not any(kind in name for kind in ("EDM", "CM", "Inverse"))
]


@pytest.mark.parametrize("name", DRAWING)
def test_random_calls_give_the_latents_of_diffusers(name: str) -> None:
    rng = random.Random(name)
    for case in range(CASES_PER_SCHEDULER):
        kind = rng.choice(["1.x", "1.x", "2.x", "distilled"])
        fields = scheduler_fields(rng, name)
        ours, oracle = _with_scheduler(kind, name, **fields)
        arguments = call_arguments(rng, oracle.scheduler)
        report = f"case {case}: {kind} {fields} {arguments}"
        expected = latents_of(oracle, arguments)
        assert torch.isfinite(expected).all(), report
        # Sigmas of 4096 leave the oracle's own float32 arithmetic fewer digits.
        tolerance = 20 * TOLERANCE if fields.get("rescale_betas_zero_snr") else TOLERANCE
        assert distance(latents_of(ours, arguments), expected) < tolerance, report


@pytest.mark.parametrize(
    "name",
    [
        "PNDMScheduler",
        "HeunDiscreteScheduler",
        "DEISMultistepScheduler",
        "DPMSolverSinglestepScheduler",
    ],
)
def test_components_of_diffusers_give_its_latents_bit_by_bit(name: str) -> None:
    _, oracle = _pair("1.x")
    oracle.scheduler = getattr(diffusers, name).from_config(tiny_scheduler().config)
    ours = StableDiffusionPipeline(**oracle.components, requires_safety_checker=False)
    ours.set_progress_bar_config(disable=True)
    arguments = {"prompt": ["a boat", "a cat"], "num_inference_steps": 4, "seeds": [1]}
    assert torch.equal(latents_of(ours, arguments), latents_of(oracle, arguments))


@pytest.mark.parametrize("part", ["unet", "text_encoder", "tokenizer", "scheduler", "vae"])
def test_a_single_component_of_diffusers_works_among_ours(part: str) -> None:
    ours, oracle = _with_scheduler("1.x", "EulerDiscreteScheduler")
    mixed = StableDiffusionPipeline(
        **{**ours.components, part: getattr(oracle, part)}, requires_safety_checker=False
    )
    mixed.set_progress_bar_config(disable=True)
    arguments = {"prompt": "a boat", "num_inference_steps": 3, "seeds": [1]}
    assert distance(latents_of(mixed, arguments), latents_of(oracle, arguments)) < TOLERANCE
    assert mixed("a boat", num_inference_steps=1, generator=seeded(1)).images[0].size == (16, 16)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_pictures_are_those_of_diffusers(output_type: str) -> None:
    ours, oracle = _with_scheduler("1.x", "DDIMScheduler")
    pictures = []
    for pipeline in (ours, oracle):
        images = pipeline(
            ["a boat", "a cat"],
            num_inference_steps=3,
            generator=seeded(3),
            output_type=output_type,
        ).images
        assert len(images) == 2
        pictures.append(np.stack([np.asarray(image, dtype=np.float64) for image in images]))
    allowed = 1 if output_type == "pil" else TOLERANCE
    assert pictures[0].shape == pictures[1].shape
    assert np.abs(pictures[0] - pictures[1]).max() <= allowed
    assert np.abs(pictures[0] - pictures[1]).mean() <= allowed / 100


def _recorded(pipeline: Any, **arguments: Any) -> tuple[list[Any], torch.Tensor]:
    """What a callback sees, and the result, when it changes the latents at step 1."""
    seen: list[Any] = []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        guided = pipe.do_classifier_free_guidance
        seen.append((step, float(timestep), pipe.num_timesteps, pipe.guidance_scale, guided))
        seen.extend(tensors[name].clone() for name in sorted(tensors))
        if step == 1:
            tensors["latents"] = tensors["latents"] * 0.5
            tensors["prompt_embeds"] = tensors["prompt_embeds"] * 1.5
        if step == 3 and arguments.get("stop"):
            pipe._interrupt = True
        return tensors

    latents = pipeline(
        "a boat",
        negative_prompt="a cat",
        num_inference_steps=5,
        guidance_scale=arguments["guidance_scale"],
        generator=seeded(5),
        output_type="latent",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds", "negative_prompt_embeds"],
    ).images
    return seen, latents


@pytest.mark.parametrize("stop", [False, True])
def test_a_callback_sees_and_changes_what_it_does_in_diffusers(stop: bool) -> None:
    ours, oracle = _with_scheduler("1.x", "PNDMScheduler")
    (mine, latents), (theirs, expected) = (
        _recorded(pipeline, guidance_scale=4.0, stop=stop) for pipeline in (ours, oracle)
    )
    assert len(mine) == len(theirs)
    for own, other in zip(mine, theirs, strict=True):
        if isinstance(other, torch.Tensor):
            assert distance(own, other) < TOLERANCE
        else:
            assert own == other
    assert distance(latents, expected) < TOLERANCE


def test_the_older_callback_is_called_as_in_diffusers() -> None:
    ours, oracle = _with_scheduler("1.x", "PNDMScheduler")
    calls: list[list[Any]] = [[], []]
    for pipeline, seen in zip((ours, oracle), calls, strict=True):
        with pytest.warns(FutureWarning, match="callback"):
            pipeline(
                "a boat",
                num_inference_steps=6,
                generator=seeded(5),
                output_type="latent",
                callback=lambda i, t, x, seen=seen: seen.append((i, float(t), tuple(x.shape))),
                callback_steps=2,
            )
    assert calls[0] == calls[1] != []


def test_ending_guidance_early_gives_the_latents_of_diffusers() -> None:
    from diffusers.callbacks import SDCFGCutoffCallback as OracleCutoff

    ours, oracle = _with_scheduler("1.x", "DDIMScheduler")
    arguments = {"prompt": "a boat", "num_inference_steps": 6, "seeds": [2]}
    expected = latents_of(
        oracle,
        arguments,
        callback_on_step_end=OracleCutoff(cutoff_step_ratio=None, cutoff_step_index=3),
    )
    for cutoff in (
        SDCFGCutoffCallback(cutoff_step_ratio=0.5),
        SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=3),
        OracleCutoff(cutoff_step_ratio=0.5),
    ):
        latents = latents_of(ours, arguments, callback_on_step_end=cutoff)
        assert distance(latents, expected) < TOLERANCE


def test_ending_guidance_early_works_for_several_pictures() -> None:
    ours, _ = _with_scheduler("1.x", "DDIMScheduler")
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    call: dict[str, Any] = {"num_inference_steps": 4, "callback_on_step_end": cutoff}
    both = ours(["a boat", "a cat"], generator=seeded(1, 2), output_type="latent", **call).images
    cat = ours("a cat", generator=seeded(2), output_type="latent", **call).images
    assert distance(both[1:], cat) < TOLERANCE
