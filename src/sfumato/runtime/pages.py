"""Weights on pages of files, which the system may take back and read again when they are needed.

A weight that was mapped from its file takes memory from the moment it is first used. `give_back`
returns that memory; the next use reads the file again, as a rule from the system's cache, which is
free for other programs to take. Pages that were written to since are never given back.

Linux alone tells which pages those are. Elsewhere `works()` is False and nothing is given back.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.checkpoints.mapping import MappedFile
from sfumato.runtime import temporary
from sfumato.runtime.page_ranges import PAGE, give_back_ranges
from sfumato.runtime.page_ranges import works as works

MAPPINGS = Path("/proc/self/maps")


def give_back(tensors: Iterable[Tensor]) -> int:
    """Free the memory of tensors that lie on unchanged pages of files.

    The tensors stay as they are: whoever reads them next waits for the file.

    Returns:
        How many bytes may have become free.
    """
    return give_back_ranges(
        (tensor.data_ptr(), _extent(tensor))
        for tensor in tensors
        if tensor.device.type == "cpu" and tensor.numel()
    )


def _extent(tensor: Tensor) -> int:
    """Bytes from the first to the last number."""
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def off_files(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Those of some tensors in main memory that lie on pages of no file."""
    ranges = _file_ranges()
    starts = np.array([start for start, _ in ranges], dtype=np.uint64)
    found = []
    for tensor in tensors:
        at = int(np.searchsorted(starts, np.uint64(tensor.data_ptr()), side="right")) - 1
        on_file = at >= 0 and tensor.data_ptr() + _extent(tensor) <= ranges[at][1]
        if tensor.device.type == "cpu" and tensor.numel() and not on_file:
            found.append(tensor)
    return found


def _file_ranges() -> list[tuple[int, int]]:
    """Addresses at which files are mapped, in rising order."""
    ranges: list[tuple[int, int]] = []
    for line in MAPPINGS.read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            start, stop = (int(address, 16) for address in addresses.split("-"))
            ranges.append((start, stop))
    return ranges


def put_on_file(tensors: Sequence[Tensor]) -> int:
    """Write tensors into a nameless temporary file and lay them on its pages.

    They keep their identity, shape and strides. The file is gone with the last of them; for its
    folder see `sfumato.runtime.temporary`. Tensors that do not fill their memory stay where they
    are.

    Returns:
        How many bytes were written; 0 where the disk has too little room.
    """
    dense = [t for t in tensors if _extent(t) == t.numel() * t.element_size()]
    starts = [0]
    for tensor in dense:
        starts.append(starts[-1] + -(-_extent(tensor) // PAGE) * PAGE)
    total = starts[-1]
    place = temporary.folder()
    if not total or not temporary.has_room(place, total):
        return 0
    with tempfile.TemporaryFile(buffering=0, dir=place) as file:
        os.ftruncate(file.fileno(), total)
        pages = MappedFile(file, Path(place) / "weights")
        for tensor, start in zip(dense, starts, strict=False):
            flat = tensor.detach().as_strided((tensor.numel(),), (1,))
            _write(file.fileno(), flat, start)
            new = pages.numbers(start, _extent(tensor), tensor.dtype)
            tensor.data = new.as_strided(tensor.shape, tensor.stride())
    return total


def _write(file: int, flat: Tensor, start: int) -> None:
    raw: Any = flat.view(torch.uint8).numpy()
    done = 0
    while done < len(raw):
        done += os.pwrite(file, raw[done:], start + done)
