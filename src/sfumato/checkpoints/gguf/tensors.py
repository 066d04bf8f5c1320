"""Tensors in GGUF files: mapped where they are plain numbers, computed where they are quantised."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from sfumato.checkpoints.files import open_regular, shown
from sfumato.checkpoints.gguf.blocks import DEQUANTISERS, dequantise
from sfumato.checkpoints.gguf.header import GgufEntry, GgufHeader, read_gguf_header
from sfumato.checkpoints.gguf.types import BY_NAME
from sfumato.checkpoints.mapping import MappedFile
from sfumato.checkpoints.tensors import (
    CHECK_MAPPED_BELOW,
    MAP_FROM_BYTES,
    TORCH_DTYPES,
    cast,
    require_finite,
)
from sfumato.errors import CheckpointError
from sfumato.runtime.pages import Settle, give_back

#: What quantised tensors become where no type is asked for: their scales are of this type.
NATURAL_DTYPE = torch.float16

#: How many numbers are computed at a time.
_PIECE = 2**18


def read_gguf(
    path: str | os.PathLike[str],
    *,
    names: Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    check_finite: bool | None = None,
    mmap: bool | None = None,
    header: GgufHeader | None = None,
    keep_blocks: bool = False,
    settle: Settle | None = None,
) -> dict[str, Tensor]:
    """The tensors of a GGUF file; arguments as of `read_safetensors`.

    Quantised tensors become ``dtype``, without one `NATURAL_DTYPE`; with ``keep_blocks`` they
    stay, unchecked, as they are in the file: `sfumato.quantization.blocks.BlockTensor`.

    Raises:
        CheckpointError: the file is not readable, not sound, or holds NaN or infinity.
    """
    path, device = Path(path), torch.device(device)
    header = header or read_gguf_header(path)
    mmap = header.file_size >= MAP_FROM_BYTES if mmap is None else mmap
    wanted = set(header.entries) if names is None else set(names)
    if missing := wanted - set(header.entries):
        raise CheckpointError(f"{shown(path)} has no tensor {min(missing)[:80]!r}.")
    result: dict[str, Tensor] = {}
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size != header.file_size:
            raise _changed(path)
        pages = MappedFile(file, path) if mmap else None
        for name, entry in header.entries.items():
            if name not in wanted:
                continue
            raw = _raw(file, pages, entry, path)
            quantised = entry.kind.name in DEQUANTISERS
            if quantised and keep_blocks:
                if settle is not None:
                    settle(raw)
                result[name] = _blocks(raw, entry, dtype)
                continue
            if quantised:
                tensor = dequantised(raw, entry.kind.name, entry.shape, dtype or NATURAL_DTYPE)
            else:
                tensor = raw.view(TORCH_DTYPES[entry.kind.name]).view(entry.shape)
            mapped = pages is not None and not quantised and dtype in (None, tensor.dtype)
            result[name] = converted = cast(tensor, dtype, device)
            if check_finite or (
                check_finite is None and not (mapped and header.file_size >= CHECK_MAPPED_BELOW)
            ):
                require_finite(name, converted, path, before=tensor)
            if settle is not None:
                settle(converted)
                give_back([raw] if pages is not None else ())
    return result


def _blocks(raw: Tensor, entry: GgufEntry, dtype: torch.dtype | None) -> Tensor:
    from sfumato.quantization.blocks import BlockTensor  # which computes with `dequantised`

    claimed = dtype or NATURAL_DTYPE
    return BlockTensor(entry.shape, claimed, raw.device, raw=raw, kind=entry.kind.name)


def dequantised(raw: Tensor, kind: str, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
    """Plain numbers of blocks.

    Args:
        raw: the bytes of whole blocks.
        kind: their type, one of `blocks.DEQUANTISERS`.
        shape: of the result.
        dtype: of the result.
    """
    block = BY_NAME[kind]
    rows = raw.numpy().reshape(-1, block.size)
    result = torch.empty(tuple(shape), dtype=dtype)
    flat, step = result.view(-1, block.count), _PIECE // block.count
    for start in range(0, len(rows), step):
        piece = dequantise(rows[start : start + step], kind)
        flat[start : start + step] = torch.from_numpy(piece)
    return result


def _raw(file: BinaryIO, pages: MappedFile | None, entry: GgufEntry, path: Path) -> Tensor:
    """The bytes of a tensor."""
    length = entry.stop - entry.start
    if pages is not None:
        item = 1 if entry.kind.count > 1 else entry.kind.size
        if entry.start % item == 0:
            return pages.numbers(entry.start, length, torch.uint8)
    raw = torch.empty(length, dtype=torch.uint8)
    file.seek(entry.start)
    if file.readinto(raw.numpy()) != length:  # type: ignore[attr-defined]
        raise _changed(path)
    return raw


def _changed(path: Path) -> CheckpointError:
    return CheckpointError(f"{shown(path)} changed while it was read.", hint="Try again.")
