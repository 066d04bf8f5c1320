"""Inpainting against diffusers: both kinds of UNet, masks in every form, crops, callbacks."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor as OracleProcessor
from PIL import Image

from sfumato.pipelines.image_processor import VaeImageProcessor
from sfumato.pipelines.inpaint import StableDiffusionInpaintPipeline
from tests.parity.calls import (
    assert_alike,
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
from tests.pipelines.tiny import seeded, tiny_parts, tiny_scheduler, tiny_unet

SCHEDULERS = (
    "PNDMScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
)
CASES_PER_SCHEDULER = 4
IN_CHANNELS = {"plain": 4, "inpainting": 9}


@cache
def _pair(kind: str) -> tuple[Any, Any]:
    unet = tiny_unet(7, in_channels=IN_CHANNELS[kind])
    ours = StableDiffusionInpaintPipeline(**{**tiny_parts(1), "unet": unet})
    ours.set_progress_bar_config(disable=True)
    return ours, oracle_of(ours)


def _with_scheduler(kind: str, name: str, **fields: Any) -> tuple[Any, Any]:
    ours, oracle = _pair(kind)
    ours.scheduler = tiny_scheduler(name, **fields)
    oracle.scheduler = oracle_scheduler(ours.scheduler)
    return ours, oracle


def _mask(rng: random.Random, rows: int, columns: int, count: int = 1) -> Any:
    """Random masks in one of the forms that pipelines accept."""
    values = np.random.default_rng(rng.randrange(2**32)).random((count, rows, columns))
    array = values.astype(np.float32)
    tensor = torch.from_numpy(array)
    pictures = [Image.fromarray((one * 255).astype(np.uint8)) for one in array]
    forms: list[Any] = [
        pictures,
        [one.convert("RGB") for one in pictures],
        array[..., None],
        tensor[:, None],
        list(tensor[:, None]),
    ]
    form = rng.choice(forms)
    return form[0] if isinstance(form, list) and count == 1 and rng.random() < 0.5 else form


@pytest.mark.parametrize("name", SCHEDULERS)
def test_random_calls_give_the_latents_of_diffusers(name: str) -> None:
    rng = random.Random(f"inpaint {name}")
    for case in range(CASES_PER_SCHEDULER):
        kind = ("plain", "inpainting")[case % 2]
        fields = scheduler_fields(rng, name)
        pair = _with_scheduler(kind, name, **fields)
        arguments = call_with_strength(rng, pair[1])
        count = rng.choice([1, prompts_of(arguments)])
        arguments["image"] = picture(rng, rng.choice([16, 19]), 24, count)
        arguments["mask_image"] = _mask(rng, 16, rng.choice([16, 24]), rng.choice([1, count]))
        if rng.random() < 0.2:
            size = (arguments.get("height", 16) // 2, arguments.get("width", 16) // 2)
            given = torch.randn(1, 4, *size, generator=seeded(rng.randrange(99)))
            arguments["masked_image_latents"] = given
        wide = fields.get("rescale_betas_zero_snr")
        report = f"case {case}: {kind} {fields} {arguments}"
        assert_alike(pair, arguments, report, 2e-3 if wide else 1e-4)


@pytest.mark.parametrize("kind", IN_CHANNELS)
@pytest.mark.parametrize("padding", [None, 0, 5])
def test_pictures_and_crops_around_the_mask_are_those_of_diffusers(
    kind: str, padding: int | None
) -> None:
    rng = random.Random(3)
    image = Image.fromarray((np.random.default_rng(0).random((48, 40, 3)) * 255).astype(np.uint8))
    mask = Image.new("L", image.size)
    mask.paste(255, (22, 10, 36, 16))
    drawn = []
    for pipeline in _with_scheduler(kind, "DDIMScheduler"):
        result = pipeline(
            "a boat",
            image=image,
            mask_image=mask,
            height=16,
            width=24,
            padding_mask_crop=padding,
            strength=0.7,
            num_inference_steps=5,
            generator=seeded(rng.randrange(1) + 4),
        ).images[0]
        drawn.append(np.asarray(result, dtype=np.float64))
    assert drawn[0].shape == ((16, 24, 3) if padding is None else (48, 40, 3))
    assert np.abs(drawn[0] - drawn[1]).max() <= 1


@pytest.mark.parametrize("seed", range(20))
def test_regions_of_masks_are_those_of_diffusers(seed: int) -> None:
    rng = random.Random(seed)
    width, height = rng.randint(8, 90), rng.randint(8, 90)
    mask = Image.new("L", (width, height))
    left, upper = rng.randrange(width), rng.randrange(height)
    box = (left, upper, rng.randint(left, width), rng.randint(upper, height))
    mask.paste(200, (*box[:2], max(box[2], left + 1), max(box[3], upper + 1)))
    wanted = (mask, rng.choice([64, 128, 40]), rng.choice([64, 128, 200]), rng.choice([0, 4, 32]))
    oracle = OracleProcessor
    assert VaeImageProcessor.get_crop_region(*wanted) == oracle.get_crop_region(*wanted)


@pytest.mark.parametrize("kind", IN_CHANNELS)
def test_callbacks_see_and_change_masks_as_in_diffusers(kind: str) -> None:
    seen: list[list[torch.Tensor]] = [[], []]
    results = []
    for pipeline, record in zip(_with_scheduler(kind, "DDIMScheduler"), seen, strict=True):

        def change(
            p: Any, i: int, t: Any, tensors: dict[str, Any], record: list[torch.Tensor] = record
        ) -> dict[str, Any]:
            record.extend(tensors[name].clone() for name in sorted(tensors))
            return {name: tensor * 0.5 for name, tensor in tensors.items()} if i == 1 else tensors

        call = {
            "prompt": "a boat",
            "image": picture(random.Random(5), 16, 16),
            "mask_image": _mask(random.Random(6), 16, 16),
            "num_inference_steps": 4,
            "seeds": [1],
            "callback_on_step_end": change,
            "callback_on_step_end_tensor_inputs": pipeline._callback_tensor_inputs[:1]
            + pipeline._callback_tensor_inputs[3:],
        }
        results.append(latents_of(pipeline, call))
    assert len(seen[0]) == len(seen[1]) == 12
    assert all(distance(a, b) < 1e-4 for a, b in zip(*seen, strict=True))
    assert distance(*results) < 1e-4


def test_the_interface_is_that_of_diffusers() -> None:
    names = ("__init__", "__call__", "check_inputs", "prepare_latents", "prepare_mask_latents")
    assert_same_signatures(StableDiffusionInpaintPipeline, *names)
    assert_same_attributes(StableDiffusionInpaintPipeline)


WRONG_CALLS: dict[str, dict[str, Any]] = {
    "strength": {"strength": 1.5},
    "no step is left": {"strength": 0.1},
    "size": {"height": 13, "width": 16},
    "no mask": {"mask_image": None},
    "crop of a tensor": {"padding_mask_crop": 4, "output_type": "pil"},
    "crop with a tensor as mask": {
        "image": Image.new("RGB", (16, 16)),
        "padding_mask_crop": 4,
        "output_type": "pil",
    },
    "crop to tensors": {
        "image": Image.new("RGB", (16, 16)),
        "mask_image": Image.new("L", (16, 16), 255),
        "padding_mask_crop": 4,
        "output_type": "pt",
    },
    "masks": {"prompt": ["x"] * 3, "mask_image": torch.ones(2, 1, 16, 16)},
    "tensor names": {"callback_on_step_end_tensor_inputs": ["image"]},
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_raises_what_diffusers_raises(name: str) -> None:
    call = {
        "prompt": "x",
        "image": torch.zeros(1, 3, 16, 16),
        "mask_image": torch.ones(1, 1, 16, 16),
        "num_inference_steps": 2,
        **WRONG_CALLS[name],
    }
    assert_same_complaint(_pair("inpainting"), call)
