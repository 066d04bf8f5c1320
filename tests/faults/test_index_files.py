"""Indexes and links that point elsewhere: a model's folder cannot reach out of itself."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sfumato.checkpoints.model_index import read_model_index
from sfumato.errors import CheckpointError, ConfigError
from sfumato.models.unet import UNet2DConditionModel
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.checkpoints.tiny import UNET
from tests.faults.hostile_files import change, within

# 20: an index that points elsewhere

HOSTILE_ENTRIES = [
    ["../../x", "Y"],
    ["diffusers", "../../x"],
    ["/etc", "passwd"],
    ["diffusers", "os.system"],
    ["os", "system"],
    ["builtins", "eval"],
    ["diffusers", "DiffusionPipeline"],
    ["sfumato.checkpoints.folders", "load_model"],
    ["diffusers", "UNet2DConditionModel", "x"],
    ["diffusers"],
    [],
    [None, "UNet2DConditionModel"],
    ["diffusers", None],
    [1, 2],
    [["diffusers"], ["UNet2DConditionModel"]],
    ["diffusers", "x" * 100_000],
]


@pytest.mark.parametrize("value", HOSTILE_ENTRIES)
def test_an_index_that_names_anything_but_a_known_class_is_refused(
    folder: Path, value: list[Any]
) -> None:
    change(folder / "model_index.json", unet=value)
    with pytest.raises(ConfigError) as caught:
        StableDiffusionPipeline.from_pretrained(folder)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["..", "../x", "/etc", "a/b", "a.b", "", "a\0b", "ünet"])
def test_a_component_named_like_a_path_is_refused(folder: Path, name: str) -> None:
    change(folder / "model_index.json", **{name: ["diffusers", "UNet2DConditionModel"]})
    with pytest.raises(ConfigError, match="cannot be the name of a component"):
        read_model_index(folder)


def test_a_misspelt_class_is_answered_with_the_right_one(folder: Path) -> None:
    change(folder / "model_index.json", unet=["diffusers", "UNet2DConditionModell"])
    with pytest.raises(ConfigError, match="Did you mean 'UNet2DConditionModel'"):
        StableDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "tokenizer/vocab.json",
        "tokenizer",
        "scheduler",
        "scheduler/scheduler_config.json",
        "text_encoder/model.safetensors",
    ],
)
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    os.rename(folder / name, outside)
    os.symlink(outside, folder / name)
    with pytest.raises(CheckpointError, match="leads out of the model's folder"):
        StableDiffusionPipeline.from_pretrained(folder)


def test_a_link_to_a_file_of_the_system_is_refused(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.unlink()
    os.symlink("/etc/passwd", path)
    with pytest.raises(CheckpointError) as caught:
        StableDiffusionPipeline.from_pretrained(folder)
    assert "root:" not in str(caught.value)


def test_links_in_circles_are_refused(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.unlink()
    os.symlink(path.name, path)
    with within(), pytest.raises(CheckpointError):
        StableDiffusionPipeline.from_pretrained(folder)


def test_links_into_the_blobs_of_a_hub_cache_are_followed(sound: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "0123abcd"
    (repository / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(p for p in sound.rglob("*") if p.is_file())):
        blob = repository / "blobs" / f"{number:040x}"
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(sound)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert StableDiffusionPipeline.from_pretrained(snapshot).unet is not None
    assert UNet2DConditionModel.from_pretrained(snapshot / "unet").config.in_channels == 4
    link = snapshot / "unet" / "config.json"
    link.unlink()
    os.symlink(sound / "unet" / "config.json", link)
    with pytest.raises(CheckpointError, match="leads out"):
        StableDiffusionPipeline.from_pretrained(snapshot)


@pytest.mark.parametrize("subfolder", ["..", "../model/unet/../../..", "/etc", "unet/../.."])
def test_a_subfolder_outside_is_refused(folder: Path, subfolder: str) -> None:
    with pytest.raises(CheckpointError, match="leads out"):
        UNet2DConditionModel.from_pretrained(folder, subfolder=subfolder)


# 21: an index of shards that points elsewhere


@pytest.mark.parametrize(
    "name",
    [
        "../../secret.safetensors",
        "../unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "sub\\x.safetensors",
        "C:x.safetensors",
        ".hidden.safetensors",
        "config.json",
        "diffusion_pytorch_model-00001-of-00002.bin",
        "x\0.safetensors",
        "",
        7,
        ["x"],
    ],
)
def test_a_shard_outside_the_folder_is_refused(folder: Path, tmp_path: Path, name: Any) -> None:
    UNet2DConditionModel(UNET).save_pretrained(folder / "unet", max_shard_size="5KB")
    index = next((folder / "unet").glob("*.index.json"))
    weight_map = json.loads(index.read_text())["weight_map"]
    change(index, weight_map={**weight_map, "conv_in.bias": name})
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    with pytest.raises(CheckpointError) as caught:
        UNet2DConditionModel.from_pretrained(folder / "unet")
    assert "refused" in str(caught.value) and "secret'" not in str(caught.value)


def test_shards_that_do_not_hold_what_their_index_says_are_refused(folder: Path) -> None:
    unet = folder / "unet"
    UNet2DConditionModel(UNET).save_pretrained(unet, max_shard_size="5KB")
    index = next(unet.glob("*.index.json"))
    text = index.read_text()
    weight_map = json.loads(text)["weight_map"]
    other = next(v for v in weight_map.values() if v != weight_map["conv_in.bias"])

    change(index, weight_map={**weight_map, "conv_in.bias": other})
    with pytest.raises(CheckpointError, match="its index does not list"):
        UNet2DConditionModel.from_pretrained(unet)
    change(index, weight_map={**weight_map, "extra": other})
    with pytest.raises(CheckpointError, match="lack 1 tensors"):
        UNet2DConditionModel.from_pretrained(unet)
    change(index, weight_map={})
    with pytest.raises(ConfigError, match="no `weight_map`"):
        UNet2DConditionModel.from_pretrained(unet)
    index.write_text(text)
    (unet / other).unlink()
    with pytest.raises(CheckpointError, match=r"The shard .* is missing"):
        UNet2DConditionModel.from_pretrained(unet)
