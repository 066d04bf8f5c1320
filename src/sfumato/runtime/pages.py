"""Weights on pages of files, which the system may take back and read again when they are needed.

A weight that was mapped from its file takes memory from the moment it is first used. `give_back`
returns that memory; the next use reads the file again, as a rule from the system's cache, which is
free for other programs to take. Pages that were written to since are never given back.

Linux alone tells which pages those are. Elsewhere `works()` is False and nothing is given back.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.checkpoints.mapping import MappedFile
from sfumato.runtime import temporary
from sfumato.runtime.allocator import release_memory
from sfumato.runtime.page_ranges import PAGE, give_back_ranges
from sfumato.runtime.page_ranges import works as works

logger = logging.getLogger(__name__)

MAPPINGS = Path("/proc/self/maps")
#: Bytes of a temporary file. What is not written of it takes no room on the disk.
FILE_BYTES = 256 * 2**20
#: After so many bytes were laid, the memory that they had is given back: small tensors stay between
#: them, and glibc keeps what lies between tensors that stay.
_RELEASE_BYTES = 64 * 2**20
#: Gets weights as soon as they are there; see `settling`.
Settle = Callable[[Tensor], None]


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
    sizes = [_whole_pages(_extent(tensor)) for tensor in tensors if _is_dense(tensor)]
    with TemporaryPages(sum(sizes)) as place:
        return sum(tensor.nbytes for tensor in tensors if place.lay(tensor))


def wait_in_files(tensors: Iterable[Tensor]) -> None:
    """Lay tensors that are on pages of no file on those of a temporary one; give back the rest.

    Weights are on no file's pages when they were converted to another precision, or made here. Does
    nothing where the system does not let them wait.
    """
    if not works():
        return
    held = list(tensors)
    made = off_files(held)
    size = sum(tensor.nbytes for tensor in made)
    if size and not put_on_file(made):
        _tell_of_no_room(size)
    give_back(held)


@contextmanager
def settling(wanted: bool) -> Iterator[Settle | None]:
    """What gets weights while they load, each as soon as it is there, so that all wait in files.

    None where that is not wanted, or the system does not let them wait. A warning says so where the
    disk has no room.
    """
    if not (wanted and works()):
        yield None
        return
    with TemporaryPages() as place:
        yield place.settle
    if place.refused:
        _tell_of_no_room(place.refused)


class TemporaryPages:
    """Pages of nameless temporary files, on which tensors are laid one after another.

    Each file is gone with the last of its tensors. Close this, or leave its context, when all have
    been laid.

    Args:
        file_bytes: how large a file is; a tensor that is larger has one of its own size.

    Attributes:
        refused: bytes of tensors that stayed in memory because the disk had no room.
    """

    def __init__(self, file_bytes: int = FILE_BYTES) -> None:
        self._file_bytes = file_bytes
        self._file: Any = None
        self._pages: Any = None
        self._next = self._end = self._since_release = 0
        self.refused = 0

    def __enter__(self) -> TemporaryPages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        release_memory()

    def close(self) -> None:
        """Let the files belong to their tensors alone."""
        if self._file is not None:
            self._file.close()
        self._file = self._pages = None
        self._next = self._end = 0

    def settle(self, tensor: Tensor) -> None:
        """Give back the memory of a tensor on pages of a file; lay any other on such pages.

        Tensors of less than a page stay where they are, and so do those of other devices.
        """
        if tensor.device.type == "cpu" and tensor.nbytes >= PAGE and not give_back([tensor]):
            self.lay(tensor)

    def lay(self, tensor: Tensor) -> bool:
        """Write a tensor of main memory and lay it on the file's pages; whether that was done.

        It keeps its identity, shape and strides, and stays as it is where it does not fill its
        memory or the disk has no room.
        """
        if not tensor.numel() or not _is_dense(tensor):
            return False
        size = tensor.nbytes
        try:
            self._make_room(size)
            _write(
                self._file.fileno(), tensor.detach().as_strided((tensor.numel(),), (1,)), self._next
            )
            new = self._pages.numbers(self._next, size, tensor.dtype)
        except OSError as error:  # of many kinds: no folder, no right to write, no room, a quota
            if not self.refused:
                logger.info("Weights stay in memory, for lack of a temporary file (%s).", error)
            self.refused += size
            return False
        tensor.data = new.as_strided(tensor.shape, tensor.stride())
        self._next += _whole_pages(size)
        self._since_release += size
        if self._since_release >= _RELEASE_BYTES:
            self._since_release = 0
            release_memory()
        return True

    def _make_room(self, size: int) -> None:
        """See that so many bytes fit behind those that are taken, in another file if need be.

        Raises:
            OSError: the disk has no room, or the folder is not there.
        """
        if self._next + size <= self._end:
            return
        self.close()
        length = max(_whole_pages(size), self._file_bytes)
        folder = temporary.folder()
        if not temporary.has_room(folder, length):
            raise OSError(f"there is too little room in {folder}")
        self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115
        os.ftruncate(self._file.fileno(), length)
        self._pages = MappedFile(self._file, Path(folder) / "weights")
        self._end = length


def _is_dense(tensor: Tensor) -> bool:
    """Whether there are no gaps between the numbers."""
    return _extent(tensor) == tensor.nbytes


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _tell_of_no_room(size: int) -> None:
    logger.warning(
        "%d MB of weights stay in memory: the disk has no room to keep them in a temporary"
        " file. Set TMPDIR to a folder that has, or load the files' own precision.",
        size // 10**6,
    )


def _write(file: int, flat: Tensor, start: int) -> None:
    raw: Any = flat.view(torch.uint8).numpy()
    done = 0
    while done < len(raw):
        done += os.pwrite(file, raw[done:], start + done)
