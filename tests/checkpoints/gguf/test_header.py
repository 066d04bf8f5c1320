"""Files that are no sound GGUF files end in one sentence, before anything is allocated."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from sfumato.checkpoints.gguf.header import read_gguf_header
from sfumato.checkpoints.gguf.tensors import read_gguf
from sfumato.errors import CheckpointError
from tests.checkpoints.gguf.files import write_gguf
from tests.checkpoints.gguf.raw import RawFile, RawTensor, note, text

ROW = bytes(32)  # eight float32 numbers


def two(**second: object) -> list[RawTensor]:
    return [RawTensor("a", [8]), RawTensor(**{"name": "b", "sizes": [8], "offset": 32, **second})]


def long_list(inner: int, count: int) -> bytes:
    return note("x", 9, struct.pack("<IQ", inner, count))


SHAPE = struct.pack("<IQ3q", 11, 3, 2, 2, 2)

DAMAGED: dict[str, tuple[RawFile, str]] = {
    "another magic": (RawFile(magic=b"GGML"), "does not begin with GGUF"),
    "version 1": (RawFile(version=1), "version is 1"),
    "version 4": (RawFile(version=4), "version is 4"),
    "big-endian": (RawFile(order=">"), "big-endian"),
    "absurdly many tensors": (RawFile(counts=(2**63, 0)), "said to have 9223372036854775808 tens"),
    "absurdly many notes": (RawFile(counts=(0, 2**40)), "notes"),
    "more tensors than there are": (RawFile(counts=(5, 0)), "cut short"),
    "a name without end": (
        RawFile(counts=(1, 0), tail=struct.pack("<Q", 2**62)), "a tensor's name is said to have"),
    "a name that is no text": (RawFile([RawTensor(b"\xff\xfe", [8])], data=ROW), "is no text"),
    "one name twice": (RawFile(two(name="a"), data=ROW * 2), "'a' appears twice"),
    "overlapping tensors": (RawFile(two(offset=0), data=ROW * 2), "overlaps the one before"),
    "a hole between tensors": (RawFile(two(offset=64), data=ROW * 3), "does not follow"),
    "a place off the alignment": (RawFile(two(offset=33), data=ROW * 3), "does not follow"),
    "an absurd place": (RawFile(two(offset=2**63), data=ROW * 2), "does not follow"),
    "five dimensions": (RawFile([RawTensor("a", [1] * 5)], data=ROW), "5 dimensions"),
    "four thousand million dimensions": (
        RawFile(counts=(1, 0), tail=text("a") + struct.pack("<I", 2**32 - 1)), "dimensions"),
    "a size of 0": (RawFile([RawTensor("a", [0, 4])], data=ROW), "impossible sizes"),
    "sizes beyond 64 bits": (
        RawFile([RawTensor("a", [2**39, 2**39])], data=ROW), "impossible sizes"),
    "rows that blocks do not divide": (
        RawFile([RawTensor("a", [33], kind=8)], data=bytes(64)), "Q8_0 cannot divide"),
    "a single number in blocks": (
        RawFile([RawTensor("a", [], kind=8)], data=ROW), "rows of 1, which Q8_0 cannot divide"),
    "an unknown type": (RawFile([RawTensor("a", [8], kind=99)], data=ROW), "unknown type 99"),
    "a type for other models": (
        RawFile([RawTensor("a", [256], kind=16)], data=bytes(96)), "the type IQ2_XXS; types that"),
    "tensors cut short": (RawFile(two(), data=ROW + bytes(31)), "cut short"),
    "bytes after the end": (RawFile(two(), data=ROW * 3), "after its last tensor"),
    "an alignment of 0": (
        RawFile(notes=[note("general.alignment", 4, bytes(4))]), "no power of two"),
    "an alignment of 48": (
        RawFile(notes=[note("general.alignment", 4, struct.pack("<I", 48))]), "no power of two"),
    "an alignment that is text": (
        RawFile(notes=[note("general.alignment", 8, text("32"))]), "no power of two"),
    "a note twice": (RawFile(notes=[note("x", 0, b"1")] * 2), "'x' appears twice"),
    "a note of an unknown type": (RawFile(notes=[note("x", 77, b"1")]), "unknown type 77"),
    "a list without end": (RawFile(notes=[long_list(4, 2**62)]), "cut short"),
    "a list of texts without end": (RawFile(notes=[long_list(8, 2**62)]), "said to have"),
    "lists in lists": (
        RawFile(notes=[note("x", 9, struct.pack("<IQ", 9, 1) * 60)]), "unknown type 9"),
    "original sizes that do not fit": (
        RawFile([RawTensor("a", [9])], [note("comfy.gguf.orig_shape.a", 9, SHAPE)], data=bytes(36)),
        "cannot have been [2, 2, 2]"),
    "original sizes that are text": (
        RawFile([RawTensor("a", [8])], [note("comfy.gguf.orig_shape.a", 8, text("8"))], data=ROW),
        "original sizes of tensor 'a' are none"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    file, message = DAMAGED[name]
    path = file.write(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError) as caught:
        read_gguf_header(path)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 900


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    notes = [note("general.name", 8, text("a model")), long_list(0, 5) + bytes(5)]
    content = RawFile(two(), notes, data=ROW * 2).content()
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    assert set(read_gguf_header(path).entries) == {"a", "b"}
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_gguf_header(path)


def test_a_file_that_changes_before_it_is_read_is_refused(tmp_path: Path) -> None:
    path = RawFile(two(), data=ROW * 2).write(tmp_path / "m.gguf")
    header = read_gguf_header(path)
    path.write_bytes(path.read_bytes()[:-1])
    for mapped in (False, True):
        with pytest.raises(CheckpointError, match="changed while it was read"):
            read_gguf(path, header=header, mmap=mapped)


def test_notes_and_original_sizes_are_read(tmp_path: Path) -> None:
    notes = [
        note("general.name", 8, text("a model")),
        note("general.file_type", 4, struct.pack("<I", 7)),
        note("comfy.gguf.orig_shape.a", 9, SHAPE),
    ]
    path = RawFile([RawTensor("a", [8])], notes, data=ROW, version=2).write(tmp_path / "m.gguf")
    header = read_gguf_header(path)
    assert header.texts == {"general.name": "a model"}
    assert header.facts == {"general.file_type": 7}
    assert header.entries["a"].shape == (2, 2, 2)


def test_another_alignment_is_followed(tmp_path: Path) -> None:
    first, second = torch.arange(3.0), torch.arange(5.0)
    notes = [note("general.alignment", 4, struct.pack("<I", 16))]
    tensors = [RawTensor("a", [3]), RawTensor("b", [5], offset=16)]
    data = first.numpy().tobytes() + bytes(4) + second.numpy().tobytes()
    path = RawFile(tensors, notes, data=data, alignment=16).write(tmp_path / "m.gguf")
    assert path.stat().st_size % 32, "in this file, multiples of 32 would be wrong"
    found = read_gguf(path)
    assert torch.equal(found["a"], first) and torch.equal(found["b"], second)


def test_numbers_that_are_not_finite_are_refused_unless_asked_for(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"x": torch.ones(2, 32)}, "Q8_0")
    content = bytearray(path.read_bytes())
    start = read_gguf_header(path).entries["x"].start
    content[start : start + 2] = b"\xff\x7f"  # the first scale
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="'x' holds 32 NaN"):
        read_gguf(path)
    assert not read_gguf(path, check_finite=False)["x"].isfinite().all()
