"""Tensors in safetensors files without torch: raw numbers on NumPy arrays, converted when used.

The counterpart of `sfumato.checkpoints.tensors` for backends that need no torch. Files are checked
just as strictly before anything is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.checkpoints.files import open_regular, shown
from sfumato.checkpoints.header import Header, parse_header
from sfumato.checkpoints.mapping import MAP_FROM_BYTES, MappedFile
from sfumato.checkpoints.weight_files import WeightFiles, each_shard
from sfumato.errors import CheckpointError

Array = np.ndarray[Any, Any]

#: NumPy's types of the format's. NumPy has no bfloat16, so such numbers are kept as their bits.
NUMPY_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
FLOATING = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it lies in a file.

    Attributes:
        name: in the file.
        dtype: the format's name of its type, such as ``BF16``.
        raw: its numbers ``(*shape)``, of `NUMPY_DTYPES`; in memory, or on the pages of the file.
        path: the file, for messages.
    """

    name: str
    dtype: str
    raw: Array
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return self.raw.shape

    def float32(self, rows: Array | None = None) -> Array:
        """The numbers, or some rows of them, as float32; nothing of float32 is copied.

        Raises:
            CheckpointError: they are not all finite.
        """
        raw = self.raw if rows is None else self.raw[rows]
        if self.dtype == "BF16":
            wide = raw.astype(np.uint32)
            wide <<= 16
            numbers = wide.view(np.float32)
        else:
            numbers = raw.astype(np.float32, copy=False)
        if not _is_finite(numbers):
            count = int((~np.isfinite(numbers)).sum())
            raise CheckpointError(
                f"{shown(self.path)}: tensor {self.name!r} holds {count} NaN or infinite numbers.",
                hint="Training or conversion went wrong.",
            )
        return numbers

    def require_numbers(self, *, finite: bool) -> None:
        """Raise `CheckpointError` unless these are floating-point numbers, and ``finite`` ones."""
        if self.dtype not in FLOATING:
            raise CheckpointError(
                f"{shown(self.path)}: tensor {self.name!r} has the unsupported dtype {self.dtype},"
                " where floating-point numbers are needed.",
                hint="Quantised files cannot be loaded; get one in 16-bit or 32-bit.",
            )
        if finite:
            self.float32()


def read_arrays(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name.

    Files from 64 MiB on are mapped: their numbers are read from the disk when they are used.

    Raises:
        CheckpointError: when the file is not readable, not sound, or holds a dtype that NumPy
            lacks.
    """
    path = Path(path)
    with open_regular(path) as file:
        header = parse_header(file, path)
        _check_dtypes(header, path)
        if header.file_size >= MAP_FROM_BYTES:
            numbers: Callable[..., Array] = partial(_mapped, MappedFile(file, path))
        else:
            file.seek(0)
            whole = np.empty(header.file_size, np.uint8)
            if file.readinto(whole) != header.file_size:  # pyright: ignore[reportAttributeAccessIssue]
                raise CheckpointError(
                    f"{shown(path)} changed while it was read.", hint="Try again."
                )
            numbers = partial(_part, whole)
    return {
        name: StoredTensor(
            name,
            entry.dtype,
            numbers(entry.start, entry.stop, NUMPY_DTYPES[entry.dtype]).reshape(entry.shape),
            path,
        )
        for name, entry in header.entries.items()
    }


def read_weight_files(files: WeightFiles) -> dict[str, StoredTensor]:
    """The tensors of all shards; see `read_arrays` and `sfumato.checkpoints.weight_files`."""
    return dict(each_shard(files, read_arrays))


def _check_dtypes(header: Header, path: Path) -> None:
    for name, entry in header.entries.items():
        if entry.dtype not in NUMPY_DTYPES:
            raise CheckpointError(
                f"{shown(path)}: tensor {name[:80]!r} has the unsupported dtype {entry.dtype}.",
                hint="Get a file in 16-bit or 32-bit floating point.",
            )


def _mapped(pages: MappedFile, start: int, stop: int, dtype: np.dtype[Any]) -> Array:
    raw = pages.part(start, stop - start)
    if start % dtype.itemsize:
        return np.frombuffer(bytes(raw), dtype)
    return np.frombuffer(raw, dtype)


def _part(whole: Array, start: int, stop: int, dtype: np.dtype[Any]) -> Array:
    raw = whole[start:stop]
    return (raw.copy() if start % dtype.itemsize else raw).view(dtype)


def _is_finite(numbers: Array) -> bool:
    """NaN and infinity never leave a sum; the sum of finite numbers may still be too large."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(numbers.sum())) or bool(np.isfinite(numbers).all())
