"""Random calls of pipelines, for comparison with an oracle."""

from __future__ import annotations

import inspect
import random
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from tests.parity.oracle_pipeline import distance
from tests.pipelines.tiny import WIDTH, seeded, word


def scheduler_fields(rng: random.Random, name: str) -> dict[str, Any]:
    """Random settings of a scheduler that both sides know."""
    known = inspect.signature(getattr(diffusers, name)).parameters
    wishes = {
        "prediction_type": rng.choice(["epsilon", "epsilon", "v_prediction"]),
        "timestep_spacing": rng.choice(["leading", "linspace", "trailing"]),
        "use_karras_sigmas": rng.random() < 0.3,
        "rescale_betas_zero_snr": rng.random() < 0.15,
    }
    if wishes["rescale_betas_zero_snr"]:  # then the first step is pure noise: only v can go on
        wishes["prediction_type"] = "v_prediction"
        wishes["timestep_spacing"] = "trailing"
    if name == "DPMSolverMultistepScheduler":
        wishes["algorithm_type"] = rng.choice(["dpmsolver++", "sde-dpmsolver++"])
        wishes["solver_order"] = rng.choice([1, 2, 2, 3])
    if name == "DPMSolverSDEScheduler":
        wishes["noise_sampler_seed"] = rng.randrange(100)
    return {key: value for key, value in wishes.items() if key in known}


def call_arguments(rng: random.Random, scheduler: Any) -> dict[str, Any]:
    """A random call; seeds in place of generators, so that both sides get fresh ones."""
    steps = round(2 * 12 ** rng.random() ** 2)
    prompts = rng.choice([1, 1, 2])
    listed = prompts > 1 or rng.random() < 0.3
    images = rng.choice([1, 1, 1, 2])
    texts = [word(rng) for _ in range(prompts)]
    arguments: dict[str, Any] = {
        "prompt": texts if listed else texts[0],
        "num_inference_steps": steps,
        "num_images_per_prompt": images,
        "guidance_scale": rng.choice([0.0, 1.0, 1.5, 5, 7.5, 12.0]),
        "seeds": [rng.randrange(2**32)],
    }
    batch = prompts * images
    if rng.random() < 0.5:
        negatives = [word(rng) for _ in range(prompts)]
        arguments["negative_prompt"] = negatives if listed else negatives[0]
    if rng.random() < 0.4:
        arguments["guidance_rescale"] = rng.choice([0.3, 0.7, 1.0])
    if rng.random() < 0.3:
        arguments["clip_skip"] = rng.choice([0, 1, 2])
    if rng.random() < 0.4:
        arguments["seeds"] = [rng.randrange(2**32) for _ in range(batch)]
    if rng.random() < 0.4:
        arguments["eta"] = rng.choice([0.3, 1.0])
    if rng.random() < 0.4:
        arguments |= {"height": rng.choice([8, 16, 24]), "width": rng.choice([8, 16, 32])}
    elif rng.random() < 0.3:
        arguments["latents"] = torch.randn(batch, 4, 8, 8, generator=seeded(rng.randrange(99)))
    if rng.random() < 0.2:
        embeds = torch.randn(2, prompts, 77, WIDTH, generator=seeded(rng.randrange(99)))
        arguments["prompt"] = None
        arguments["prompt_embeds"] = embeds[0]
        arguments["negative_prompt_embeds"] = embeds[1]
        arguments.pop("negative_prompt", None)
    if rng.random() < 0.3:
        arguments |= own_steps(rng, scheduler)
    return arguments


def own_steps(rng: random.Random, scheduler: Any) -> dict[str, Any]:
    """Timesteps or sigmas by hand, if the scheduler takes any."""
    parameters = inspect.signature(scheduler.set_timesteps).parameters
    if "sigmas" in parameters and rng.random() < 0.5:
        return {"sigmas": sorted((rng.uniform(0.03, 14) for _ in range(6)), reverse=True)}
    blocked = getattr(scheduler.config, "use_karras_sigmas", False)
    if "timesteps" not in parameters or blocked:
        return {}
    # LCM and TCD ask that the timesteps are among those of the distillation.
    choices = range(19, 1000, 20)
    return {"timesteps": sorted(rng.sample(choices, rng.randint(2, 9)), reverse=True)}


def latents_of(pipeline: Any, arguments: dict[str, Any], **more: Any) -> torch.Tensor:
    """The latents that a pipeline draws with such arguments."""
    call = {key: value for key, value in arguments.items() if key != "seeds"}
    generator = seeded(*arguments["seeds"])
    return pipeline(**call, generator=generator, output_type="latent", **more).images


def call_of(rng: random.Random, oracle: Any, **more: Any) -> dict[str, Any]:
    """A random call of any pipeline: what its signature takes of `call_arguments`, and more."""
    known = {"seeds", *inspect.signature(type(oracle).__call__).parameters}
    arguments = call_arguments(rng, oracle.scheduler)
    arguments |= {"num_inference_steps": rng.randint(2, 8), **more}
    arguments = {name: value for name, value in arguments.items() if name in known}
    latents = arguments.get("latents")
    if latents is not None and "height" in known:  # as large as the picture
        arguments |= {"height": 2 * latents.shape[2], "width": 2 * latents.shape[3]}
    return arguments


def call_with_strength(rng: random.Random, oracle: Any) -> dict[str, Any]:
    """A random call of a pipeline that takes ``strength``, and at least one step."""
    while True:
        arguments = call_of(rng, oracle, strength=rng.choice([0.3, 0.5, 0.75, 0.8, 1.0]))
        own = arguments.get("timesteps") or arguments.get("sigmas")
        steps = len(own) if own else arguments["num_inference_steps"]
        if int(steps * arguments["strength"]) >= 1:
            return arguments


def prompts_of(arguments: dict[str, Any]) -> int:
    """How many prompts a call has."""
    if arguments["prompt"] is None:
        return len(arguments["prompt_embeds"])
    return len(arguments["prompt"]) if isinstance(arguments["prompt"], list) else 1


def picture(rng: random.Random, rows: int, columns: int, count: int = 1) -> Any:
    """Random pictures in one of the forms that pipelines accept."""
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (count, rows, columns, 3))
    pixels = pixels.astype(np.uint8)
    array = pixels.astype(np.float32) / 255
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    forms = [
        [Image.fromarray(one) for one in pixels],
        array,
        tensor,
        list(array),
        list(tensor),
    ]
    form = rng.choice(forms)
    return form[0] if isinstance(form, list) and count == 1 and rng.random() < 0.5 else form


def assert_alike(
    pairs: tuple[Any, Any], arguments: dict[str, Any], report: str, tolerance: float = 1e-4
) -> None:
    """Raise when the latents of two pipelines differ by more than the tolerance."""
    ours, oracle = pairs
    expected = latents_of(oracle, arguments)
    assert torch.isfinite(expected).all(), report
    assert distance(latents_of(ours, arguments), expected) < tolerance, report
