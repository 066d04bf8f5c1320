"""UNets that see a picture beside the noise, against diffusers: editing, depth, upscaling."""

from __future__ import annotations

import random
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.pipelines.depth2img import StableDiffusionDepth2ImgPipeline
from sfumato.pipelines.instruct_pix2pix import StableDiffusionInstructPix2PixPipeline
from sfumato.pipelines.upscale import StableDiffusionUpscalePipeline
from tests.parity.calls import (
    assert_alike,
    call_of,
    call_with_strength,
    latents_of,
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
from tests.pipelines.tiny import seeded, tiny_parts, tiny_scheduler, tiny_unet, tiny_vae

SCHEDULERS = (
    "PNDMScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "HeunDiscreteScheduler",
)
NO_CHECKER = ("safety_checker", "feature_extractor", "requires_safety_checker")


@cache
def _pair(kind: str) -> tuple[Any, Any]:
    parts = tiny_parts(1)
    if kind == "edit":
        parts["unet"] = tiny_unet(7, in_channels=8)
        ours: Any = StableDiffusionInstructPix2PixPipeline(**parts)
    else:
        parts = {name: part for name, part in parts.items() if name not in NO_CHECKER}
    if kind == "depth":
        parts["unet"] = tiny_unet(7, in_channels=5)
        ours = StableDiffusionDepth2ImgPipeline(
            **parts, depth_estimator=None, feature_extractor=None
        )
    elif kind == "upscale":
        parts["unet"] = tiny_unet(7, in_channels=7, num_class_embeds=1000)
        parts["vae"] = tiny_vae(2, scaling_factor=0.08333)
        low_res = tiny_scheduler("DDPMScheduler", beta_schedule="squaredcos_cap_v2")
        ours = StableDiffusionUpscalePipeline(**parts, low_res_scheduler=low_res)
    ours.set_progress_bar_config(disable=True)
    return ours, oracle_of(ours)


def _with_scheduler(kind: str, name: str, **fields: Any) -> tuple[Any, Any]:
    ours, oracle = _pair(kind)
    ours.scheduler = tiny_scheduler(name, **fields)
    oracle.scheduler = oracle_scheduler(ours.scheduler)
    return ours, oracle


def _call(rng: random.Random, kind: str, oracle: Any) -> dict[str, Any]:
    if kind == "depth":
        arguments = call_with_strength(rng, oracle)
        count = rng.choice([1, prompts_of(arguments)])
        image = picture(rng, 16, 16, count)
        arguments["image"] = image[None] if getattr(image, "ndim", 4) == 3 else image
        depths = np.random.default_rng(rng.randrange(99)).random((count, 9, 13))
        arguments["depth_map"] = torch.from_numpy(depths).float()
        return arguments
    arguments = call_of(rng, oracle)
    arguments.pop("latents", None)
    count = prompts_of(arguments)
    if kind == "edit":
        arguments["image_guidance_scale"] = rng.choice([0.5, 1.0, 1.5, 3.0])
        arguments["image"] = picture(rng, 16, 24, rng.choice([1, count]))
        if rng.random() < 0.2:
            arguments["image"] = torch.randn(1, 4, 8, 6, generator=seeded(rng.randrange(99)))
    else:
        arguments["noise_level"] = rng.choice([0, 20, 350])
        small = picture(rng, 8, 12, count)
        whole = isinstance(small, Image.Image) or getattr(small, "ndim", 0) == 4
        arguments["image"] = small if whole or isinstance(small, list) else small[None]
    return arguments


@pytest.mark.filterwarnings("ignore:You have passed:FutureWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("kind", ["edit", "depth", "upscale"])
def test_random_calls_give_the_latents_of_diffusers(kind: str, name: str) -> None:
    rng = random.Random(f"{kind} {name}")
    for case in range(2):
        fields = scheduler_fields(rng, name)
        pair = _with_scheduler(kind, name, **fields)
        arguments = _call(rng, kind, pair[1])
        wide = fields.get("rescale_betas_zero_snr")
        assert_alike(pair, arguments, f"case {case}: {fields} {arguments}", 2e-3 if wide else 1e-4)


@pytest.mark.parametrize("kind", ["edit", "depth", "upscale"])
def test_pictures_are_those_of_diffusers(kind: str) -> None:
    results = []
    for pipeline in _with_scheduler(kind, "DDIMScheduler"):
        call: dict[str, Any] = {"prompt": "a boat", "num_inference_steps": 3}
        if kind == "depth":
            call["depth_map"] = torch.rand(1, 16, 16, generator=seeded(3))
        result = pipeline(
            **call,
            image=picture(random.Random(1), 16, 16),
            generator=seeded(3),
            output_type="pt",
            return_dict=False,
        )
        assert len(result) == (1 if kind == "depth" else 2)
        results.append(result[0])
    assert distance(*results) < 1e-4


@pytest.mark.parametrize(("kind", "name"), [("edit", "image_latents"), ("depth", "depth_mask")])
def test_callbacks_see_and_change_the_picture_as_in_diffusers(kind: str, name: str) -> None:
    seen: list[list[torch.Tensor]] = [[], []]
    results = []
    for pipeline, record in zip(_with_scheduler(kind, "DDIMScheduler"), seen, strict=True):

        def change(
            p: Any, i: int, t: Any, tensors: dict[str, Any], record: list[torch.Tensor] = record
        ) -> dict[str, Any]:
            record.append(tensors[name].clone())
            return {name: tensors[name] * 0.5} if i == 1 else tensors

        call: dict[str, Any] = {
            "prompt": "a boat",
            "image": picture(random.Random(5), 16, 16),
            "num_inference_steps": 4,
            "seeds": [1],
            "callback_on_step_end": change,
            "callback_on_step_end_tensor_inputs": [name],
        }
        if kind == "depth":
            call |= {"depth_map": torch.rand(1, 16, 16, generator=seeded(3)), "strength": 1.0}
        results.append(latents_of(pipeline, call))
    assert len(seen[0]) == len(seen[1]) == 4
    assert all(distance(a, b) < 1e-4 for a, b in zip(*seen, strict=True))
    assert distance(*results) < 1e-4


class Estimator(torch.nn.Module):
    """A depth estimator: the mean of the colours."""

    dtype = torch.float32
    device = torch.device("cpu")

    def forward(self, pixels: torch.Tensor) -> Any:
        return SimpleNamespace(predicted_depth=pixels.mean(dim=1))


class Extractor:
    """Pixels of PIL pictures, at a size of its own."""

    def __call__(self, images: list[Any], return_tensors: str) -> Any:
        arrays = [np.asarray(image.resize((24, 24)), dtype=np.float32) / 255 for image in images]
        return SimpleNamespace(pixel_values=torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2))


def test_depths_are_estimated_as_in_diffusers() -> None:
    ours, oracle = _with_scheduler("depth", "DDIMScheduler")
    image = Image.fromarray((np.random.default_rng(0).random((16, 24, 3)) * 255).astype(np.uint8))
    results = []
    for pipeline in (ours, oracle):
        pipeline.depth_estimator, pipeline.feature_extractor = Estimator(), Extractor()
        call = {"prompt": "a boat", "image": image, "num_inference_steps": 3, "seeds": [2]}
        results.append(latents_of(pipeline, call))
        pipeline.depth_estimator = pipeline.feature_extractor = None
    assert distance(*results) < 1e-3  # the oracle estimates depths in bfloat16


def test_the_interfaces_are_those_of_diffusers() -> None:
    edit, depth, upscale = (type(_pair(kind)[0]) for kind in ("edit", "depth", "upscale"))
    common = ("__init__", "__call__", "check_inputs", "prepare_latents")
    assert_same_signatures(edit, *common, "prepare_image_latents")
    assert_same_signatures(depth, *common)
    assert_same_signatures(upscale, *common)
    assert_same_attributes(edit)
    assert_same_attributes(upscale)
    assert depth._callback_tensor_inputs == _pair("depth")[1]._callback_tensor_inputs


WRONG_CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing to edit": ("edit", {"image": None}),
    "uneven pictures": ("edit", {"prompt": ["x"] * 3, "image": torch.zeros(2, 3, 16, 16)}),
    "no picture": ("depth", {"image": None}),
    "strength": ("depth", {"strength": 2.0}),
    "noise": ("upscale", {"noise_level": 400}),
    "kind of picture": ("upscale", {"image": "small.png"}),
    "batch": ("upscale", {"prompt": ["x", "y"]}),
    "callback_steps": ("upscale", {"callback_steps": None}),
    "latents": ("upscale", {"latents": torch.zeros(1, 4, 4, 4)}),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_raises_what_diffusers_raises(name: str) -> None:
    kind, wrong = WRONG_CALLS[name]
    call = {"prompt": "x", "image": torch.zeros(1, 3, 16, 16), "num_inference_steps": 2}
    assert_same_complaint(_pair(kind), {**call, **wrong})
