"""Ranges of memory on pages of files, given back to the system; see `sfumato.runtime.pages`."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

PAGE = mmap.PAGESIZE
#: About each page of this process, eight bytes: see the kernel's admin-guide/mm/pagemap.
PAGE_MAP = Path("/proc/self/pagemap")
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))


def works() -> bool:
    """Whether this system lets a process give pages back and see which it has written to."""
    return os.access(PAGE_MAP, os.R_OK) and hasattr(mmap, "MADV_DONTNEED")


def give_back_ranges(ranges: Iterable[tuple[int, int]]) -> int:
    """Free the memory of ranges that lie on unchanged pages of files.

    What is there stays as it is: whoever reads it next waits for the file.

    Args:
        ranges: the address and the bytes of each.

    Returns:
        How many bytes may have become free.
    """
    if not works():
        return 0
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    freed = 0
    with PAGE_MAP.open("rb", buffering=0) as page_map:
        for start, size in ranges:
            # Pages at either end may hold parts of neighbours.
            first = -(-start // PAGE)
            stop = (start + size) // PAGE
            if stop > first and _unchanged(page_map.fileno(), first, stop):
                length = (stop - first) * PAGE
                freed += length if madvise(first * PAGE, length, mmap.MADV_DONTNEED) == 0 else 0
    return freed


def _unchanged(page_map: int, first: int, stop: int) -> bool:
    """Whether all pages that are in memory are still the file's."""
    raw = os.pread(page_map, (stop - first) * 8, first * 8)
    flags = np.frombuffer(raw, dtype=np.uint64)
    written = (flags & _SWAPPED != 0) | ((flags & _PRESENT != 0) & (flags & _OF_FILE == 0))
    return len(flags) == stop - first and not written.any()
