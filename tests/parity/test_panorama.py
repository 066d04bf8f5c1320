"""Overlapping windows against diffusers."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch

from sfumato.pipelines.panorama import StableDiffusionPanoramaPipeline
from tests.parity.calls import latents_of
from tests.parity.oracle_pipeline import distance, oracle_of, oracle_scheduler
from tests.parity.surface import assert_same_attributes, assert_same_signatures
from tests.pipelines.tiny import seeded, tiny_parts, tiny_scheduler, tiny_unet, tiny_vae

EIGHTH: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
}


@cache
def _pair() -> tuple[Any, Any]:
    """With an autoencoder of a factor of 8, which diffusers takes for granted here."""
    parts = {**tiny_parts(1), "unet": tiny_unet(7), "vae": tiny_vae(2, **EIGHTH)}
    ours = StableDiffusionPanoramaPipeline(**parts)
    ours.set_progress_bar_config(disable=True)
    return ours, oracle_of(ours)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    [
        "PNDMScheduler",
        "DDIMScheduler",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
    ],
)
def test_random_calls_give_the_latents_of_diffusers(name: str) -> None:
    rng = random.Random(f"panorama {name}")
    ours, oracle = _pair()
    ours.scheduler = tiny_scheduler(name)
    oracle.scheduler = oracle_scheduler(ours.scheduler)
    arguments: dict[str, Any] = {
        "prompt": "a river",
        "negative_prompt": "a house",
        "height": 64,
        "width": 8 * rng.choice([72, 80]),
        "num_inference_steps": 3,
        "guidance_scale": rng.choice([1.0, 5.0]),
        "view_batch_size": rng.choice([1, 2]),
        "circular_padding": rng.random() < 0.5,
        "seeds": [rng.randrange(99)],
    }
    # The oracle leaves out `guidance_rescale`; in guidance it pairs texts and windows wrongly.
    batch = 1 if arguments["guidance_scale"] > 1 else arguments["view_batch_size"]
    theirs = {**arguments, "view_batch_size": batch}
    assert distance(latents_of(ours, arguments), latents_of(oracle, theirs)) < 1e-4, arguments


def test_windows_are_those_of_diffusers_where_they_fit() -> None:
    ours, oracle = _pair()
    for height, width, circular in ((512, 2048, False), (512, 2048, True), (640, 512, False)):
        expected = oracle.get_views(height, width, circular_padding=circular)
        assert ours.get_views(height, width, circular_padding=circular) == expected


def test_windows_cover_pictures_of_every_size() -> None:
    for width in range(512, 1200, 8):
        covered = {c for v in _pair()[0].get_views(512, width) for c in range(v.left, v.right)}
        assert covered == set(range(width // 8)), width


def test_edges_of_a_circle_are_decoded_as_in_diffusers() -> None:
    ours, oracle = _pair()
    latents = torch.randn(1, 4, 8, 20, generator=seeded(1))
    with torch.no_grad():
        results = [pipeline.decode_latents_with_padding(latents) for pipeline in (ours, oracle)]
    assert distance(*results) < 1e-4


def test_the_interface_is_that_of_diffusers() -> None:
    names = ("__init__", "__call__", "check_inputs", "get_views", "decode_latents_with_padding")
    assert_same_signatures(StableDiffusionPanoramaPipeline, *names)
    assert_same_attributes(StableDiffusionPanoramaPipeline)
