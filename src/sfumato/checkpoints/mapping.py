"""A file of numbers in memory without being copied: tensors on the pages of the file itself.

The mapping is private, so writing to a tensor changes that page in memory and never the file. It
lives as long as one of its tensors does.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sfumato.checkpoints.files import shown
from sfumato.errors import CheckpointError

if TYPE_CHECKING:  # imported by who wants tensors rather than bytes
    import torch

#: Files below this size are read rather than mapped: reading costs little, and a file that is
#: truncated by someone else while a mapping of it is in use would end the process.
MAP_FROM_BYTES = 64 * 2**20
#: Mapped files up to this size are checked for NaN and infinity unless the caller decides; so is
#: everything that is read. A check of 2 GiB in the system's cache takes a tenth of a second, but it
#: makes the disk deliver the whole file.
CHECK_MAPPED_BELOW = 2 * 2**30


class MappedFile:
    """An open file, mapped as a whole."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        """Map it; ``path`` is for messages.

        Raises:
            CheckpointError: the system refuses.
        """
        try:
            self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{shown(path)} cannot be mapped: {error}.",
                hint="Pass `disable_mmap=True` to read it into memory.",
            ) from error
        self._path = path
        if len(self._pages) != os.fstat(file.fileno()).st_size:
            raise self._changed()

    def part(self, start: int, length: int) -> memoryview:
        """``length`` bytes from position ``start`` on.

        Raises:
            CheckpointError: the file is shorter than that.
        """
        if start + length > len(self._pages):
            raise self._changed()
        return memoryview(self._pages)[start : start + length]

    def numbers(self, start: int, length: int, dtype: torch.dtype) -> torch.Tensor:
        """``length`` bytes from position ``start`` on as one row of numbers.

        Each row has a storage of its own size, so saving or sharing it takes no more of the file
        along. Numbers that do not lie on a multiple of their size are copied.

        Raises:
            CheckpointError: the file is shorter than that.
        """
        import torch

        if length == 0:
            return torch.empty(0, dtype=dtype)
        if start + length > len(self._pages):
            raise self._changed()
        if start % dtype.itemsize:
            raw = torch.frombuffer(self._pages, dtype=torch.uint8, count=length, offset=start)
            return raw.clone().view(dtype)
        count = length // dtype.itemsize
        return torch.frombuffer(self._pages, dtype=dtype, count=count, offset=start)

    def _changed(self) -> CheckpointError:
        return CheckpointError(f"{shown(self._path)} changed while it was read.", hint="Try again.")
