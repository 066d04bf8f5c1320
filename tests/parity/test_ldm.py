"""Pipelines without a text against diffusers: the same weights and draws give the same pictures."""

from __future__ import annotations

import inspect
import random
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.pipelines.ldm import LDMPipeline
from sfumato.pipelines.ldm_superresolution import LDMSuperResolutionPipeline
from sfumato.pipelines.pixels import DDIMPipeline, DDPMPipeline
from sfumato.schedulers import DDPMScheduler
from tests.parity.oracle_pipeline import oracle_network, oracle_of, oracle_scheduler
from tests.pipelines.tiny import seeded, tiny_vae
from tests.pipelines.tiny_latent import SCHEDULE, parts, tiny_unet_2d, tiny_vq

#: Those that diffusers names for super-resolution.
SCHEDULERS = (
    "DDIMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
)


def _scheduler(rng: random.Random, name: str) -> Any:
    import sfumato.schedulers

    cls = getattr(sfumato.schedulers, name)
    known = inspect.signature(cls).parameters
    fields = {**SCHEDULE, "prediction_type": rng.choice(["epsilon", "sample", "v_prediction"])}
    if name in ("PNDMScheduler", "LMSDiscreteScheduler") or "Euler" in name:
        fields["prediction_type"] = rng.choice(["epsilon", "v_prediction"])
        fields["skip_prk_steps"] = True
    return cls(**{key: value for key, value in fields.items() if key in known})


def _unet_fields(rng: random.Random) -> dict[str, Any]:
    return {
        "block_out_channels": rng.choice([(32, 64), (24, 24), (16, 48)]),
        "attention_head_dim": rng.choice([None, 4, 8]),
        "resnet_time_scale_shift": rng.choice(["default", "scale_shift"]),
        "downsample_type": rng.choice(["conv", "resnet"]),
        "upsample_type": rng.choice(["conv", "resnet"]),
        "layers_per_block": rng.choice([1, 2]),
    }


def _generators(rng: random.Random, count: int) -> tuple[Any, Any]:
    seed = rng.randrange(1000)
    if rng.random() < 0.5:
        return seeded(seed), seeded(seed)
    each = range(seed, seed + count)
    return [seeded(s) for s in each], [seeded(s) for s in each]


def _assert_alike(ours: Any, oracle: Any, report: str) -> None:
    difference = np.abs(np.asarray(ours) - np.asarray(oracle)).max()
    assert np.asarray(ours).shape == np.asarray(oracle).shape, report
    assert difference < 1e-4, f"{difference} {report}"


def _assert_alike_before_and_after_decoding(
    ours: Any, oracle: Any, own: dict[str, Any], other: dict[str, Any], report: str
) -> None:
    """Latents of the two, then pictures of one's latents.

    Two latents that differ in their last digit may have other vectors of a codebook nearest.
    """
    decoded: list[torch.Tensor] = []
    decode = oracle.vqvae.decode
    oracle.vqvae.decode = lambda latents: (decoded.append(latents), decode(latents))[1]
    torch.manual_seed(3)
    expected = oracle(**other, output_type="np").images
    torch.manual_seed(3)
    latents = ours(**own, output_type="latent").images
    scaled = isinstance(ours, LDMPipeline)
    theirs = decoded[0] * oracle.vqvae.config.scaling_factor if scaled else decoded[0]
    assert latents.shape == theirs.shape, report
    difference = ((latents - theirs).abs().max() / theirs.abs().max().clamp(min=1)).item()
    assert difference < 1e-4, f"{difference} {report}"
    with torch.no_grad():
        pictures = ours.vqvae.decode(decoded[0]).sample
    pictures = ours.image_processor.postprocess(pictures, output_type="np")
    _assert_alike(pictures, expected, report)


@pytest.mark.parametrize("seed", range(12))
def test_unconditional_pictures_are_those_of_diffusers(seed: int) -> None:
    rng = random.Random(seed)
    fields = _unet_fields(rng)
    first_stage = rng.choice([tiny_vq(seed), tiny_vae(seed, latent_channels=3)])
    size = rng.choice([4, 8])
    ours = LDMPipeline(
        first_stage,
        tiny_unet_2d(seed, sample_size=size, **fields),
        _scheduler(rng, rng.choice(["DDIMScheduler", "PNDMScheduler"])),
    )
    oracle = oracle_of(ours)
    batch, steps = rng.choice([1, 2, 3]), rng.choice([1, 3, 6])
    own, other = _generators(rng, batch)
    arguments = {"batch_size": batch, "num_inference_steps": steps}
    report = f"{fields} {arguments}"
    _assert_alike_before_and_after_decoding(
        ours, oracle, {"generator": own, **arguments}, {"generator": other, **arguments}, report
    )


def test_noise_in_the_steps_is_drawn_as_by_diffusers_from_the_global_generator() -> None:
    ours, arguments = LDMPipeline(**parts()), {"batch_size": 2, "eta": 0.7}
    arguments["num_inference_steps"] = 4
    _assert_alike_before_and_after_decoding(ours, oracle_of(ours), arguments, arguments, "eta")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SCHEDULERS)
def test_enlarged_pictures_are_those_of_diffusers(name: str, seed: int) -> None:
    rng = random.Random(f"{name} {seed}")
    fields = _unet_fields(rng)
    unet = tiny_unet_2d(seed, in_channels=6, **fields)
    ours = LDMSuperResolutionPipeline(tiny_vq(seed), unet, _scheduler(rng, name))
    oracle = oracle_of(ours)
    rows, height, width = rng.choice([1, 2]), rng.choice([8, 12]), rng.choice([8, 16])
    image: Any = torch.rand(rows, 3, height, width, generator=seeded(seed)) * 2 - 1
    if rng.random() < 0.4:
        rows, noise = 1, np.random.default_rng(seed).integers(0, 256, (40, 35, 3), np.uint8)
        image = Image.fromarray(noise)
    own, other = _generators(rng, rows)
    arguments = {"image": image, "num_inference_steps": rng.choice([2, 5])}
    if "Ancestral" in name:  # there, noise in the steps is from the global generator
        own = other = None
    report = f"{fields} {arguments['num_inference_steps']} steps"
    _assert_alike_before_and_after_decoding(
        ours, oracle, {"generator": own, **arguments}, {"generator": other, **arguments}, report
    )


@pytest.mark.parametrize("seed", range(4))
def test_pictures_drawn_in_pixels_are_those_of_diffusers(seed: int) -> None:
    rng = random.Random(seed)
    unet = tiny_unet_2d(seed, **_unet_fields(rng))
    fields = {"beta_schedule": rng.choice(["linear", "squaredcos_cap_v2"])}
    scheduler = DDPMScheduler(**fields, variance_type=rng.choice(["fixed_small", "fixed_large"]))
    for ours_class, own in (
        (DDPMPipeline, {"num_inference_steps": 5}),
        (DDIMPipeline, {"eta": 0.4, "num_inference_steps": 5, "use_clipped_model_output": True}),
    ):
        oracle_class = getattr(diffusers, ours_class.__name__)
        oracle = oracle_class(oracle_network(unet), oracle_scheduler(scheduler))
        oracle.set_progress_bar_config(disable=True)
        arguments: dict[str, Any] = {"batch_size": 2, "output_type": "np", **own}
        pictures = ours_class(unet, scheduler)(generator=seeded(seed), **arguments).images
        expected = oracle(generator=seeded(seed), **arguments).images
        _assert_alike(pictures, expected, f"{ours_class.__name__} {fields}")


@pytest.mark.parametrize(
    "ours", [LDMPipeline, LDMSuperResolutionPipeline, DDPMPipeline, DDIMPipeline]
)
def test_arguments_are_those_of_diffusers_and_more_by_name(ours: type) -> None:
    oracle = getattr(diffusers, ours.__name__)
    for method in ("__init__", "__call__"):
        mine = list(inspect.signature(getattr(ours, method)).parameters.values())
        theirs = list(inspect.signature(getattr(oracle, method)).parameters.values())
        positional = [p for p in mine if p.kind is p.POSITIONAL_OR_KEYWORD]
        theirs = [p for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in theirs]


@pytest.mark.parametrize("cls", [LDMPipeline, LDMSuperResolutionPipeline])
def test_folders_are_read_by_either_library(cls: Any, tmp_path: Any) -> None:
    channels = {"in_channels": 6} if cls is LDMSuperResolutionPipeline else {}
    ours = cls(**parts(**channels))
    oracle = oracle_of(ours)
    ours.save_pretrained(tmp_path / "ours")
    oracle.save_pretrained(tmp_path / "oracle")
    read = getattr(diffusers, cls.__name__).from_pretrained(tmp_path / "ours")
    again = cls.from_pretrained(tmp_path / "oracle")
    image = () if cls is LDMPipeline else (torch.rand(1, 3, 8, 8),)
    arguments: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np"}
    pictures = [p(*image, generator=seeded(1), **arguments).images for p in (ours, read, again)]
    # Single latents may choose other vectors of the codebook for their last digit.
    assert np.median(np.abs(pictures[0] - pictures[1])) < 1e-4
    assert np.array_equal(pictures[0], pictures[2])
