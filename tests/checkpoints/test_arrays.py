"""Safetensors read without torch: the same numbers, the same refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sfumato.checkpoints import arrays
from sfumato.checkpoints.arrays import read_arrays
from sfumato.checkpoints.tensors import read_safetensors
from sfumato.errors import CheckpointError

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8)


@pytest.mark.parametrize("mapped", [False, True])
def test_all_types_give_torchs_numbers(
    tmp_path: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "MAP_FROM_BYTES", 0 if mapped else 2**60)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype): (torch.randn(5, 3, generator=generator) * 50).abs().to(dtype)
        for dtype in DTYPES
    }
    tensors["odd"] = torch.arange(3, dtype=torch.uint8)
    tensors["empty"] = torch.zeros(0, 4)
    save_file(tensors, tmp_path / "x.safetensors")
    expected = read_safetensors(tmp_path / "x.safetensors")
    found = read_arrays(tmp_path / "x.safetensors")
    assert set(found) == set(expected)
    for name, stored in found.items():
        assert stored.shape == tuple(expected[name].shape)
        assert np.array_equal(stored.float32(), expected[name].float().numpy())
    rows = np.array([[4, 0], [1, 1]])
    picked = found["torch.bfloat16"].float32(rows)
    assert np.array_equal(picked, expected["torch.bfloat16"].float().numpy()[rows])


def test_numbers_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    broken = torch.tensor([1.0, float("nan"), float("inf")])
    save_file({"layer": broken, "large": torch.full((4,), 3e38)}, tmp_path / "x.safetensors")
    found = read_arrays(tmp_path / "x.safetensors")
    assert np.isfinite(found["large"].float32()).all()
    with pytest.raises(CheckpointError, match="'layer' holds 2 NaN or infinite numbers"):
        found["layer"].float32()


def test_a_type_that_numpy_lacks_is_refused(tmp_path: Path) -> None:
    save_file({"small": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="unsupported dtype F8_E4M3"):
        read_arrays(tmp_path / "x.safetensors")


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(64)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cut short"):
        read_arrays(path)
