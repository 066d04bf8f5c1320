"""Tensors that wait until they are needed again: in main memory up to a limit, then in a file.

A large picture's feature maps are written once and read once or twice, from top to bottom, so they
need not be in memory. The file is temporary, has no name and is gone with its `Room`; for its
folder see `sfumato.runtime.temporary`. As long as the system has memory to spare it keeps the
file's pages there, for all to take; where it has not, it writes them to the disk. Where there is no
disk, or no room on it, tensors wait in memory.
"""

from __future__ import annotations

import logging
import math
import tempfile
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sfumato.runtime import temporary

logger = logging.getLogger(__name__)


class Room:
    """Where tensors wait; close it, or leave its context, when all were taken.

    Args:
        limit: bytes of them in memory; by default there is no limit.

    Attributes:
        left: bytes of the limit that are not taken.
    """

    def __init__(self, limit: float = math.inf) -> None:
        self.left = limit
        self._file: Any = None
        self._folder = ""
        self._space = Space()
        self._works = True

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the file and all that waits there."""
        if self._file is not None:
            self._file.close()

    def keep(self, tensor: Tensor) -> Kept:
        """A tensor to ask for later. Nobody may write to it until then."""
        return Kept(self, tensor)

    def write(self, numbers: Tensor) -> int | None:
        """Put numbers without gaps between them into the file.

        Returns:
            Their place, or None if they have to stay in memory: the disk is full, say.
        """
        if not self._works:
            return None
        try:
            place = self._place(numbers.nbytes)
            self._file.seek(place)
            raw = _bytes(numbers)
            while raw:
                raw = raw[self._file.write(raw) :]
            return place
        except OSError as error:  # of many kinds: no folder, no right to write, no room, a quota
            self._works = False
            logger.warning(
                "Parts of a large picture stay in memory, for lack of a temporary file (%s)."
                " Set TMPDIR to a folder that has room for it.",
                error,
            )
            return None

    def read(self, place: int, numbers: Tensor) -> None:
        """Fill a tensor from a place of the file.

        Raises:
            OSError: the file cannot be read.
        """
        self._file.seek(place)
        raw = _bytes(numbers)
        while raw:
            count = self._file.readinto(raw)
            if not count:
                raise OSError("The temporary file with parts of a large picture has lost its end.")
            raw = raw[count:]

    def free(self, place: int, size: int) -> None:
        """Let others have a place of the file."""
        self._space.free(place, size)

    def _place(self, size: int) -> int:
        if self._file is None:
            self._folder = temporary.folder()
            self._file = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115
        growth = self._space.growth(size)
        if growth and not temporary.has_room(self._folder, growth):
            raise OSError(f"there is too little room in {self._folder}")
        return self._space.take(size)


class Space:
    """Which bytes of a file are free: those of parts that were given up, and all behind `end`.

    Attributes:
        end: bytes that were ever taken.
    """

    def __init__(self) -> None:
        self.end = 0
        self._holes: dict[int, int] = {}  # where they stop, by where they start

    def growth(self, size: int) -> int:
        """How far `end` moves if so many bytes are taken."""
        return 0 if self._hole(size) is not None else size - (self.end - self._last())

    def take(self, size: int) -> int:
        """The first place with so many free bytes, which are free no longer."""
        start = self._hole(size)
        if start is None:
            start = self._last()
            self._holes.pop(start, None)
            self.end = start + size
            return start
        stop = self._holes.pop(start)
        if start + size < stop:
            self._holes[start + size] = stop
        return start

    def free(self, start: int, size: int) -> None:
        """Give bytes up; they join the free ones beside them."""
        stop = start + size
        stop = self._holes.pop(stop, stop)
        before = next((a for a, b in self._holes.items() if b == start), start)
        self._holes[before] = stop

    def _hole(self, size: int) -> int | None:
        return min((a for a, b in self._holes.items() if b - a >= size), default=None)

    def _last(self) -> int:
        """Where the free bytes begin that reach to the end."""
        return next((a for a, b in self._holes.items() if b == self.end), self.end)


class Kept:
    """A tensor that waits in a room: as it is, or as its layout and a place of the file.

    Tensors of an accelerator that the limit leaves no room for wait in main memory.
    """

    def __init__(self, room: Room, tensor: Tensor) -> None:
        self._room = room
        self._device = tensor.device
        self._size = tensor.nbytes
        self._place: int | None = None
        self._counts = self._size <= room.left or not _is_plain(tensor)
        if self._counts:
            room.left -= self._size
        elif self._device.type == "cpu":
            tensor = self._written(tensor)
        else:
            tensor = tensor.cpu()
        self._tensor = tensor

    def get(self) -> Tensor:
        """The tensor, which goes on waiting."""
        if self._place is None:
            return self._tensor.to(self._device)
        read = torch.empty_like(self._tensor, device=self._device)
        self._room.read(self._place, read)
        return read

    def take(self) -> Tensor:
        """The tensor, for the last time."""
        tensor = self.get()
        if self._counts:
            self._room.left += self._size
        if self._place is not None:
            self._room.free(self._place, self._size)
        return tensor

    def _written(self, tensor: Tensor) -> Tensor:
        """The layout of a tensor that went into the file; the tensor if there is no place."""
        dense = tensor if _is_dense(tensor) else tensor.clone()
        self._place = self._room.write(dense)
        return tensor if self._place is None else torch.empty_like(dense, device="meta")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is its numbers and no more: no gradient, transformation or subclass."""
    return (
        type(tensor) is Tensor
        and tensor.device.type != "meta"
        and not tensor.requires_grad
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
    )


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or (
        tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def _bytes(tensor: Tensor) -> memoryview:
    flat: Any = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
    return memoryview(flat)
