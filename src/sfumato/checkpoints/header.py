"""The header of a safetensors file, read and checked before anything is allocated.

The format: eight bytes with the little-endian length N of the header, N bytes of JSON that give
each tensor's dtype, shape and byte range, then the bytes themselves without holes. The checks here
are stricter than the safetensors library's (which accepts duplicate keys and leading spaces), and
their messages say what the file probably is when it is no safetensors file at all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sfumato.checkpoints.files import open_regular, shown
from sfumato.errors import CheckpointError

#: The format's own limit on the length of the header.
MAX_HEADER_BYTES = 100_000_000

#: Commas and brackets in a header; a tensor takes some ten. As Python's objects, the most that
#: this allows take some hundred megabytes, a header of empty lists alone would take gigabytes.
_MAX_VALUES = 2**22

#: Bits of one number, by the format's name of the dtype.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: ``start`` and ``stop`` are byte positions in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header.

    Attributes:
        entries: in the order of their bytes.
        metadata: the free text beside them.
        file_size: in bytes.
        stamp: tells the file, and its state when the header was read.
    """

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    file_size: int
    stamp: tuple[int, ...] = ()

    def is_of(self, file: BinaryIO) -> bool:
        """Whether it was read from this open file, and that has not changed since."""
        return self.stamp == _stamp(file)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of the file at ``path``; reads no tensor.

    Raises:
        CheckpointError: when the path is no readable file or the file is not sound.
    """
    with open_regular(path) as file:
        return parse_header(file, Path(path))


def parse_header(file: BinaryIO, path: Path) -> Header:
    """Check the header of an open file (see `read_header`); ``path`` is for messages."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(64)
    if len(start) < 8:
        raise CheckpointError(
            f"{shown(path)} has {size} bytes: header too small, this is no safetensors file.",
            hint="The download probably failed; fetch the file again.",
        )
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{" or length > MAX_HEADER_BYTES:
        raise _not_safetensors(path, start, length)
    if 8 + length > size:
        raise _truncated(path, f"at least {8 + length}", size)
    file.seek(8)
    raw = file.read(length)
    if len(raw) != length:
        raise CheckpointError(f"{shown(path)} changed while it was read.", hint="Try again.")
    try:
        entries, metadata = _parse_entries(raw)
        stop = _check_layout(entries)
    except ValueError as error:
        raise CheckpointError(f"{shown(path)}: the header is damaged: {error}.") from None
    data_size = size - 8 - length
    if stop > data_size:
        raise _truncated(path, str(8 + length + stop), size)
    if stop < data_size:
        raise CheckpointError(
            f"{shown(path)} has {data_size - stop} bytes after its last tensor "
            f"({8 + length + stop} bytes expected, {size} found).",
            hint="Such files can hide a second file and are refused; fetch it again.",
        )
    offset = 8 + length
    placed = {
        name: TensorEntry(e.dtype, e.shape, e.start + offset, e.stop + offset)
        for name, e in entries.items()
    }
    return Header(placed, metadata, size, _stamp(file))


def _stamp(file: BinaryIO) -> tuple[int, ...]:
    """What differs between two files, and between two states of one."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _parse_entries(raw: bytes) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The entries in the order of their bytes (positions relative to the data), and metadata."""
    if sum(map(raw.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise ValueError("it has more entries than any model has tensors")
    try:
        table = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant
        )
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if re.search(rb"\\u[dD][89abAB]", raw):  # half a surrogate pair is no text; Python lets it pass
        json.dumps(table, ensure_ascii=False).encode("utf-8")
    metadata = table.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("`__metadata__` is not a map from text to text")
    entries = {name: _parse_entry(name, value) for name, value in table.items()}
    return dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop))), metadata


def _parse_entry(name: str, value: Any) -> TensorEntry:
    label = f"tensor {name[:80]!r}"
    if not isinstance(value, dict):
        raise ValueError(f"{label} is not described by an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"{label} has the unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or not all(_is_size(d) for d in shape):
        raise ValueError(f"{label} has a shape that is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise ValueError(f"{label} has no valid `data_offsets`")
    start, stop = offsets
    if start > stop or stop >= 2**63:
        raise ValueError(f"{label} has the impossible byte range {start}..{stop}"[:200])
    bits = (stop - start) * 8
    if _product(shape, limit=max(bits, 2**40)) * DTYPE_BITS[dtype] != bits:
        raise ValueError(
            f"{label} of dtype {dtype} and shape {str(shape)[:80]} does not take the "
            f"{stop - start} bytes given to it"
        )
    return TensorEntry(dtype, tuple(shape), start, stop)


def _check_layout(entries: Mapping[str, TensorEntry]) -> int:
    """The number of data bytes that the entries cover, when they lie side by side."""
    position = 0
    for name, entry in entries.items():
        if entry.start != position:
            what = "overlaps another" if entry.start < position else "leaves a hole before it"
            raise ValueError(f"tensor {name[:80]!r} {what}")
        position = entry.stop
    return position


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _product(shape: list[int], limit: int) -> int:
    """The product of the sizes, or some number above ``limit`` when it is above ``limit``.

    Sizes beside a zero count too: torch cannot hold an empty tensor of 2^64 columns.
    """
    product = 1
    for size in filter(None, shape):
        product *= size
        if product > limit:
            return product
    return 0 if 0 in shape else product


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:80]!r} appears twice")
    return table


def _no_constant(token: str) -> None:
    raise ValueError(f"{token} is not JSON")


def _truncated(path: Path, expected: str, size: int) -> CheckpointError:
    return CheckpointError(
        f"{shown(path)} is cut short: {expected} bytes expected, {size} found.",
        hint="The download probably stopped early; fetch the file again.",
    )


#: First bytes of other kinds of file that have been passed off as weights.
_MAGICS = {
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"#!": "a script",
}


def what_it_looks_like(start: bytes) -> str | None:
    """A guess what a file is from its first bytes, for files that are not safetensors."""
    text = start.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer (run `git lfs pull` to get the real file)"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        return "an HTML page (the download was answered with a web page)"
    if start.startswith(b"PK\x03\x04"):
        return "a zip archive or a torch pickle (rename it to .bin, .pt or .ckpt)"
    if start.startswith(b"\x80"):
        return "a Python pickle (rename it to .bin, .pt or .ckpt)"
    for magic, name in _MAGICS.items():
        if start.startswith(magic):
            return name
    if text.startswith((b'{"error', b"{'error", b"entry not found", b"access to")):
        return "an error message of a download"
    return None


def _not_safetensors(path: Path, start: bytes, length: int) -> CheckpointError:
    guess = what_it_looks_like(start)
    if guess is not None:
        return CheckpointError(f"{shown(path)} is not a safetensors file but {guess}.")
    if length > MAX_HEADER_BYTES:
        return CheckpointError(
            f"{shown(path)} is not a safetensors file (HTML page? git-lfs pointer?): header too "
            f"large ({length} bytes said, at most {MAX_HEADER_BYTES} allowed)."
        )
    return CheckpointError(f"{shown(path)} is not a safetensors file: its header is no JSON.")
