"""Pipeline folders go to diffusers and back without losing a bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from sfumato.pipelines.base import DiffusionPipeline
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.parity.oracle_pipeline import distance, oracle_of
from tests.pipelines.tiny import seeded, tiny_pipeline, tiny_scheduler

NETWORKS = ("unet", "vae", "text_encoder")


def _latents(pipeline: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        "A red Apple", num_inference_steps=3, generator=seeded(4), output_type="latent"
    ).images


def _assert_same_weights(one: Any, other: Any) -> None:
    for name in NETWORKS:
        mine, theirs = (getattr(p, name).state_dict() for p in (one, other))
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert tensor.dtype == theirs[key].dtype
            assert torch.equal(tensor, theirs[key]), f"{name}.{key}"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"variant": "fp16"},
        {"max_shard_size": "300KB"},
        {"safe_serialization": False},
        {"variant": "fp16", "max_shard_size": "300KB"},
    ],
    ids=str,
)
def test_a_folder_of_ours_loads_in_diffusers(tmp_path: Path, options: dict[str, Any]) -> None:
    ours = tiny_pipeline(scheduler=tiny_scheduler("EulerDiscreteScheduler"))
    ours.save_pretrained(tmp_path, **options)
    variant = options.get("variant")
    oracle = diffusers.DiffusionPipeline.from_pretrained(
        tmp_path, variant=variant, safety_checker=None, local_files_only=True
    )
    assert isinstance(oracle, diffusers.StableDiffusionPipeline)
    _assert_same_weights(ours, oracle)
    assert type(oracle.scheduler).__name__ == "EulerDiscreteScheduler"
    for key, value in ours.scheduler.config.items():
        if not key.startswith("_"):
            assert oracle.scheduler.config[key] == value, key
    assert oracle.config.requires_safety_checker is False
    assert distance(_latents(ours), _latents(oracle)) < 1e-4


@pytest.mark.parametrize(
    "options",
    [{}, {"variant": "fp16"}, {"max_shard_size": "300KB"}, {"safe_serialization": False}],
    ids=str,
)
def test_a_folder_of_diffusers_loads_in_ours(tmp_path: Path, options: dict[str, Any]) -> None:
    oracle = oracle_of(tiny_pipeline(5))
    oracle.save_pretrained(tmp_path, **options)
    ours = DiffusionPipeline.from_pretrained(tmp_path, variant=options.get("variant"))
    assert type(ours) is StableDiffusionPipeline
    _assert_same_weights(ours, oracle)
    assert distance(_latents(ours), _latents(oracle)) < 1e-4


def test_a_folder_survives_the_way_through_both_libraries(tmp_path: Path) -> None:
    ours = tiny_pipeline(6)
    ours.save_pretrained(tmp_path / "ours")
    oracle = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "ours")
    oracle.save_pretrained(tmp_path / "theirs")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "theirs")
    _assert_same_weights(ours, again)
    assert torch.equal(_latents(ours), _latents(again))


def test_the_index_is_what_diffusers_writes(tmp_path: Path) -> None:
    ours = tiny_pipeline()
    ours.save_pretrained(tmp_path / "ours")
    oracle_of(ours).save_pretrained(tmp_path / "theirs")
    mine, theirs = (
        json.loads((tmp_path / side / "model_index.json").read_text())
        for side in ("ours", "theirs")
    )
    theirs["tokenizer"] = ["transformers", "CLIPTokenizer"]  # its Fast twin there
    theirs.pop("_name_or_path", None)
    assert mine == theirs


def test_components_of_diffusers_are_saved_by_their_own_methods(tmp_path: Path) -> None:
    oracle = oracle_of(tiny_pipeline(7))
    ours = StableDiffusionPipeline(**oracle.components, requires_safety_checker=False)
    ours.save_pretrained(tmp_path)
    _assert_same_weights(StableDiffusionPipeline.from_pretrained(tmp_path), oracle)
    _assert_same_weights(diffusers.StableDiffusionPipeline.from_pretrained(tmp_path), oracle)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_load_in_another_precision_as_in_diffusers(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    tiny_pipeline(8).save_pretrained(tmp_path)
    ours = StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    oracle = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    _assert_same_weights(ours, oracle)
