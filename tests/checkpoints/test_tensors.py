"""Tensors in files: what is written is read back bit for bit, mapped or not, in any shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from sfumato.checkpoints import pickles as pickles_module
from sfumato.checkpoints import tensors as tensors_module
from sfumato.checkpoints.header import read_header
from sfumato.checkpoints.pickles import read_pickle
from sfumato.checkpoints.tensors import is_finite, read_safetensors, save_safetensors
from sfumato.errors import CheckpointError, InputError
from tests.faults.hostile_files import entry, safetensors_bytes

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint16, torch.uint32, torch.uint64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def example(dtype: torch.dtype, *shape: int) -> Tensor:
    return (torch.randn(shape).abs() * 3).to(dtype)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in type, shape and every bit."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    left, right = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(left, right)


@pytest.mark.parametrize("mmap", [True, False])
def test_every_dtype_goes_there_and_back(tmp_path: Path, mmap: bool) -> None:
    tensors = {str(dtype): example(dtype, 3, 5) for dtype in DTYPES}
    tensors |= {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "odd": example(DTYPES[9], 7),
    }
    path = tmp_path / "m.safetensors"
    save_safetensors(tensors, path)
    loaded = read_safetensors(path, mmap=mmap)
    assert set(loaded) == set(tensors)
    assert all(same(loaded[name], tensor) for name, tensor in tensors.items())
    assert all(same(load_file(path)[name], tensor) for name, tensor in tensors.items())


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda s: s != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4)),
        max_size=6,
    ),
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), st.text(
        st.characters(codec="utf-8"), max_size=8), max_size=3),
    st.booleans(),
)  # fmt: skip
def test_any_names_shapes_and_metadata_go_there_and_back(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: dict[str, tuple[torch.dtype, list[int]]],
    metadata: dict[str, str],
    mmap: bool,
) -> None:
    tensors = {name: example(dtype, *shape) for name, (dtype, shape) in kinds.items()}
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_safetensors(tensors, path, metadata)
    loaded = read_safetensors(path, mmap=mmap)
    assert set(loaded) == set(tensors)
    assert all(same(loaded[name], tensor) for name, tensor in tensors.items())
    assert read_header(path).metadata == {"format": "pt", **metadata}


def test_views_and_shared_memory_are_written_as_what_they_show(tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    tensors = {
        "base": base,
        "again": base,
        "transposed": base.T,
        "part": base[2:4],
        "expanded": base[:1].expand(3, 4),
        "parameter": torch.nn.Parameter(base),
        "channels_last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    }
    path = tmp_path / "m.safetensors"
    save_safetensors(tensors, path)
    assert all(torch.equal(t, tensors[name]) for name, t in read_safetensors(path).items())
    assert base.data_ptr() == tensors["again"].data_ptr(), "the originals are left alone"


def test_a_file_can_be_saved_over_the_file_its_tensors_are_mapped_from(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    before = {"a": torch.randn(1000), "b": torch.randn(10)}
    save_safetensors(before, path)
    mapped = read_safetensors(path, mmap=True)
    save_safetensors({"b": mapped["b"], "c": mapped["a"]}, path)
    after = read_safetensors(path)
    assert torch.equal(after["c"], before["a"]) and torch.equal(after["b"], before["b"])


def test_what_cannot_be_saved_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for tensors, metadata in [
        ({"a": [1.0]}, None),
        ({"a": torch.eye(3).to_sparse()}, None),
        ({"a": torch.zeros(1)}, {"step": 3}),
    ]:
        with pytest.raises(InputError):
            save_safetensors(tensors, path, metadata)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_only_floating_point_tensors_are_converted(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_safetensors({str(d): example(d, 4) for d in DTYPES}, path)
    for mmap in (True, False):
        loaded = read_safetensors(path, dtype=torch.bfloat16, mmap=mmap)
        for name, tensor in loaded.items():
            kept = not name.startswith(("torch.float", "torch.bfloat"))
            assert str(tensor.dtype) == (name if kept else "torch.bfloat16")


def test_a_tensor_that_is_not_aligned_in_its_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    numbers = torch.randn(5)
    header = {"a": entry(0, 3, [3], "U8"), "z": entry(3, 23)}
    path.write_bytes(safetensors_bytes(header, b"\1\2\3" + numbers.numpy().tobytes()))
    for mmap in (True, False):
        assert torch.equal(read_safetensors(path, mmap=mmap)["z"], numbers)


def test_a_mapped_tensor_takes_nothing_else_of_its_file_along(tmp_path: Path) -> None:
    tensors = {"large": torch.zeros(1 << 16), "small": torch.ones(3, 2), "none": torch.ones(0, 4)}
    save_safetensors(tensors, tmp_path / "m.safetensors")
    torch.save(tensors, tmp_path / "m.pt")
    for loaded in (
        read_safetensors(tmp_path / "m.safetensors", mmap=True),
        read_pickle(tmp_path / "m.pt", mmap=True),
    ):
        assert loaded["small"].untyped_storage().nbytes() == 24
        assert torch.equal(loaded["small"], tensors["small"])
        assert loaded["none"].shape == (0, 4)
        loaded["small"].fill_(5)  # in memory alone
    assert torch.equal(read_safetensors(tmp_path / "m.safetensors")["small"], tensors["small"])
    assert torch.equal(read_pickle(tmp_path / "m.pt")["small"], tensors["small"])


def test_large_files_are_checked_for_nan_by_default_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors_module, "CHECK_MAPPED_BELOW", 1000)
    monkeypatch.setattr(pickles_module, "CHECK_MAPPED_BELOW", 1000)
    tensors = {"bad": torch.full((500,), float("nan"))}
    save_safetensors(tensors, tmp_path / "m.safetensors")
    torch.save(tensors, tmp_path / "m.pt")
    for read, name in ((read_safetensors, "m.safetensors"), (read_pickle, "m.pt")):
        assert read(tmp_path / name, mmap=True)["bad"].isnan().all()
        with pytest.raises(CheckpointError, match="'bad' holds 500 NaN"):
            read(tmp_path / name, mmap=True, check_finite=True)
        for options in ({"mmap": False}, {"mmap": True, "dtype": torch.float16}):
            with pytest.raises(CheckpointError, match="'bad' holds 500 NaN"):
                read(tmp_path / name, **options)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.is_floating_point])
def test_finiteness_is_seen_in_every_dtype_and_place(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert is_finite(torch.full((65, 3), largest, dtype=dtype))
    for place in (0, 97, 194):
        bad = torch.zeros(195)
        bad[place] = float("nan")
        assert not is_finite(bad.to(dtype).reshape(65, 3))
        if dtype != torch.float8_e4m3fn:  # which has no infinity
            for sign in (1, -1):
                bad[place] = sign * float("inf")
                assert not is_finite(bad.to(dtype))


def test_empty_and_integer_tensors_are_finite() -> None:
    assert (
        is_finite(torch.zeros(0)) and is_finite(torch.arange(3)) and is_finite(torch.tensor(True))
    )
