"""Files that change under their readers, and numbers that are none: rows 12, 24 and 26."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.checkpoints import pickles as pickles_module
from sfumato.checkpoints import tensors as tensors_module
from sfumato.checkpoints.inspection import inspect_file, require_sound
from sfumato.checkpoints.pickles import read_pickle
from sfumato.checkpoints.tensors import read_safetensors, save_safetensors
from sfumato.errors import CheckpointError
from sfumato.models.unet import UNet2DConditionModel
from tests.checkpoints.tiny import UNET
from tests.command import Run
from tests.faults.hostile_files import torch_bytes

# 12: NaN, found on demand


@pytest.fixture
def unsound(tmp_path: Path) -> Path:
    path = tmp_path / "unsound.safetensors"
    bad = torch.zeros(5)
    bad[3] = torch.nan
    save_safetensors({"good": torch.ones(3), "model.bad": bad}, path)
    return path


def test_verifying_names_every_tensor_with_nan(unsound: Path) -> None:
    assert inspect_file(unsound).not_finite is None
    info = inspect_file(unsound, verify=True)
    assert info.not_finite == ("model.bad",)
    with pytest.raises(CheckpointError, match=r"1 tensors hold NaN or infinity.*'model\.bad'"):
        require_sound(info)


def test_the_command_verifies(run: Run, unsound: Path) -> None:
    assert run("info", unsound).code == 0
    said = run("info", "--verify", unsound)
    assert said.code == 1 and "model.bad" in said.err
    sound = unsound.with_name("sound.safetensors")
    save_safetensors({"good": torch.ones(3)}, sound)
    assert run("info", "--verify", sound).code == 0
    told = json.loads(run("info", "--json", "--verify", sound).out)
    assert told["not_finite"] == []


# 24: cut or replaced while it is read


def cut_when(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, path: Path) -> None:
    """Cut the file in half as soon as the function has returned."""
    original = getattr(module, name)

    def then_cut(*args: Any) -> Any:
        result = original(*args)
        os.truncate(path, path.stat().st_size // 2)
        return result

    monkeypatch.setattr(module, name, then_cut)


@pytest.mark.parametrize("mmap", [False, True])
def test_a_safetensors_file_cut_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mmap: bool
) -> None:
    path = tmp_path / "m.safetensors"
    save_safetensors({"a": torch.ones(50_000), "b": torch.ones(50_000)}, path)
    cut_when(monkeypatch, tensors_module, "parse_header", path)
    with pytest.raises(CheckpointError, match=r"m\.safetensors"):
        read_safetensors(path, mmap=mmap)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_cut_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mmap: bool, legacy: bool
) -> None:
    path = tmp_path / "m.ckpt"
    content = {"a": torch.ones(50_000), "b": torch.ones(50_000)}
    path.write_bytes(torch_bytes(content, _use_new_zipfile_serialization=not legacy))
    cut_when(monkeypatch, pickles_module, "stored_tensors", path)
    with pytest.raises(CheckpointError, match=r"m\.ckpt"):
        read_pickle(path, mmap=mmap)


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_replaced_while_it_is_read_gives_what_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mmap: bool
) -> None:
    path = tmp_path / "m.safetensors"
    save_safetensors({"a": torch.ones(50_000)}, path)
    original = tensors_module.parse_header

    def then_replace(*args: Any) -> Any:
        header = original(*args)
        save_safetensors({"b": torch.zeros(7)}, path)
        return header

    monkeypatch.setattr(tensors_module, "parse_header", then_replace)
    loaded = read_safetensors(path, mmap=mmap)
    assert torch.equal(loaded["a"], torch.ones(50_000))


# 26: changed after it was loaded


def test_a_model_loaded_again_is_the_one_that_is_there_now(tmp_path: Path) -> None:
    first = UNet2DConditionModel(UNET)
    first.save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path)
    before = loaded.conv_in.weight.detach().clone()
    with torch.no_grad():
        first.conv_in.weight.add_(1)
    first.save_pretrained(tmp_path)
    assert torch.equal(loaded.conv_in.weight, before)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    assert torch.equal(again.conv_in.weight, first.conv_in.weight)
