"""The header of a GGUF file, read and checked before anything is allocated.

The format, all little-endian: the letters ``GGUF``, the version (2 or 3), the number of tensors and
of notes; the notes, each a key, a type and a value; of each tensor its name, sizes (the innermost
first), type of block and place; and the blocks, each tensor's at a multiple of the alignment.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sfumato.checkpoints.files import open_regular, shown
from sfumato.checkpoints.gguf.types import TYPES, UNREADABLE, BlockType
from sfumato.errors import CheckpointError

MAGIC = b"GGUF"
#: Where a file says nothing, tensors begin at multiples of this.
DEFAULT_ALIGNMENT = 32

_MAX_TENSORS, _MAX_NOTES = 2**17, 2**16
_MAX_NAME, _MAX_TEXT = 1024, 2**20
#: Texts in lists: a tokenizer's vocabulary has some hundred thousand.
_MAX_LISTED = 2**20
_MAX_SIZES = 4

#: Notes of this form give the sizes of a tensor that was reshaped to fill whole blocks.
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."

#: Types of notes, by number: their format for `struct`.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_TEXT, _LIST = 8, 9


@dataclass(frozen=True, slots=True)
class GgufEntry:
    """Where one tensor lies: ``start`` and ``stop`` are byte positions in the file."""

    kind: BlockType
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A checked header.

    Attributes:
        entries: in the order of their bytes.
        texts: the notes that are text.
        facts: the notes that are numbers.
        file_size: in bytes.
    """

    entries: Mapping[str, GgufEntry]
    texts: Mapping[str, str]
    facts: Mapping[str, Any]
    file_size: int


class _Damaged(ValueError):
    """What is wrong, for the middle of a sentence."""


def read_gguf_header(path: str | os.PathLike[str]) -> GgufHeader:
    """Read and check the header of the file at ``path``; reads no tensor.

    Raises:
        CheckpointError: the path is no readable file, or the file is not sound.
    """
    path = Path(path)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return _parse(_Reader(file, size))
        except _Damaged as error:
            raise CheckpointError(
                f"{shown(path)} is no sound GGUF file: {error}.",
                hint="Fetch the file again, or get the model as safetensors.",
            ) from None


class _Reader:
    """The bytes of a file from its beginning on; never more than there are."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.position, self.listed = file, size, 0, 0

    def take(self, count: int) -> bytes:
        raw = self.file.read(count) if count <= self.size - self.position else b""
        if len(raw) != count:
            raise _Damaged(f"it is cut short at {self.size} bytes, in the middle of its header")
        self.position += count
        return raw

    def skip(self, count: int) -> None:
        if count > self.size - self.position:
            raise _Damaged(f"it is cut short at {self.size} bytes, in the middle of its header")
        self.position += count
        self.file.seek(self.position)

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self, limit: int, what: str) -> str:
        length = self.number("Q")
        if length > limit:
            raise _Damaged(f"{what} is said to have {length} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise _Damaged(f"{what} is no text") from None


def _parse(reader: _Reader) -> GgufHeader:
    _check_start(reader)
    tensors, notes = reader.number("Q"), reader.number("Q")
    if tensors > _MAX_TENSORS or notes > _MAX_NOTES:
        raise _Damaged(f"it is said to have {tensors} tensors and {notes} notes")
    said = _read_notes(reader, notes)
    alignment = said.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**16 or alignment.bit_count() != 1:
        raise _Damaged(f"its alignment is {str(alignment)[:40]}, which is no power of two")
    described = _read_entries(reader, tensors, said)
    return GgufHeader(
        entries=_placed(described, reader, alignment),
        texts={key: value for key, value in said.items() if isinstance(value, str)},
        facts={key: value for key, value in said.items() if isinstance(value, int | float)},
        file_size=reader.size,
    )


def _check_start(reader: _Reader) -> None:
    if reader.size < 24:
        raise _Damaged(f"it has {reader.size} bytes")
    if reader.take(4) != MAGIC:
        raise _Damaged("it does not begin with GGUF")
    version = reader.number("I")
    if version & 0xFFFF == 0:
        raise _Damaged("its numbers are big-endian, which is not supported")
    if version not in (2, 3):
        raise _Damaged(f"its version is {version}, known are 2 and 3")


def _read_notes(reader: _Reader, count: int) -> dict[str, Any]:
    """Text, numbers, and short lists of numbers; other lists are passed over (None)."""
    notes: dict[str, Any] = {}
    for _ in range(count):
        key = reader.text(_MAX_NAME, "a note's key")
        if key in notes:
            raise _Damaged(f"the note {key[:80]!r} appears twice")
        notes[key] = _read_value(reader, reader.number("I"), depth=0)
    return notes


def _read_value(reader: _Reader, kind: int, depth: int) -> Any:
    if kind == _TEXT:
        return reader.text(_MAX_TEXT, "a note")
    if kind in _SCALARS:
        return reader.number(_SCALARS[kind])
    if kind != _LIST or depth > 2:
        raise _Damaged(f"a note has the unknown type {kind}")
    inner, count = reader.number("I"), reader.number("Q")
    if inner in _SCALARS:
        if count <= _MAX_SIZES:
            return [reader.number(_SCALARS[inner]) for _ in range(count)]
        reader.skip(count * struct.calcsize(f"<{_SCALARS[inner]}"))
        return None
    reader.listed += count
    if reader.listed > _MAX_LISTED:
        raise _Damaged(f"a list in its notes is said to have {count} entries")
    for _ in range(count):
        _read_value(reader, inner, depth + 1)
    return None


def _read_entries(reader: _Reader, count: int, notes: Mapping[str, Any]) -> dict[str, GgufEntry]:
    """Tensors as the header describes them, at positions relative to the data."""
    entries: dict[str, GgufEntry] = {}
    for _ in range(count):
        name = reader.text(_MAX_NAME, "a tensor's name")
        label = f"tensor {name[:80]!r}"
        if name in entries:
            raise _Damaged(f"{label} appears twice")
        length = reader.number("I")
        if length > _MAX_SIZES:
            raise _Damaged(f"{label} is said to have {length} dimensions")
        sizes = [reader.number("Q") for _ in range(length)]
        kind = _known_type(reader.number("I"), label)
        start = reader.number("Q")
        nbytes = _bytes_of(sizes, kind, label)
        shape = _shape(tuple(reversed(sizes)), notes.get(_ORIGINAL_SHAPE + name), label)
        entries[name] = GgufEntry(kind, shape, start, start + nbytes)
    return entries


def _known_type(number: int, label: str) -> BlockType:
    if number in TYPES:
        return TYPES[number]
    known = f"type {UNREADABLE[number]}" if number in UNREADABLE else f"unknown type {number}"
    raise _Damaged(
        f"{label} has the {known}; types that can be read are "
        f"{', '.join(kind.name for kind in TYPES.values())}"
    )


def _bytes_of(sizes: list[int], kind: BlockType, label: str) -> int:
    total = 1
    for size in sizes:
        total *= size
        if not 0 < size < 2**40 or total >= 2**48:
            raise _Damaged(f"{label} has the impossible sizes {sizes}"[:200])
    row = sizes[0] if sizes else 1
    if row % kind.count:
        raise _Damaged(f"{label} has rows of {row}, which {kind.name} cannot divide")
    return total // kind.count * kind.size


def _shape(stored: tuple[int, ...], original: Any, label: str) -> tuple[int, ...]:
    """The sizes before a writer changed them to fill whole blocks."""
    if original is None:
        return stored
    if not isinstance(original, list) or not all(type(s) is int and s > 0 for s in original):
        raise _Damaged(f"the original sizes of {label} are none")
    if _product(original) != _product(stored):
        raise _Damaged(f"{label} is of sizes {stored}, which cannot have been {original}"[:200])
    return tuple(original)


def _product(sizes: list[int] | tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _placed(
    entries: Mapping[str, GgufEntry], reader: _Reader, alignment: int
) -> dict[str, GgufEntry]:
    """The entries in the order of their bytes, at positions in the file."""
    data = _aligned(reader.position, alignment)
    placed: dict[str, GgufEntry] = {}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start != _aligned(position, alignment):
            follows = "overlaps" if entry.start < position else "does not follow"
            raise _Damaged(f"tensor {name[:80]!r} {follows} the one before")
        position = entry.stop
        placed[name] = GgufEntry(entry.kind, entry.shape, data + entry.start, data + entry.stop)
    if entries and data + position > reader.size:
        raise _Damaged(f"it is cut short: {data + position} bytes expected, {reader.size} found")
    if reader.size > max(data, _aligned(data + position, alignment)):
        raise _Damaged(
            f"it has bytes after its last tensor: {data + position} expected, {reader.size} found"
        )
    return placed


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
