"""Weights laid out for the compiled kernels, made on first use and dropped with the weight.

A packed copy is taken again only if the weight is the same tensor on the same memory with the same
numbers. Memory is recognised by its storage, changes by torch's version counter; what goes past
the counter (``weight.data.add_(...)``) is noticed by the first 64 bytes, which any change of the
whole weight changes. The original lies idle from then on: where it is a file's pages unchanged,
they are given back.

Nothing is packed where the system would be left with too little memory.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from sfumato.runtime import pages

Pack = Callable[[Tensor], Tensor]
#: Where Linux tells how much memory is to be had; `SPARE_MEMORY` bytes of it are left.
MEMORY_INFO = Path("/proc/meminfo")
SPARE_MEMORY = 2**29


@dataclass(frozen=True, eq=False)
class _Entry:
    weight: weakref.ref[Tensor]
    storage: StorageWeakRef
    state: tuple[object, ...]
    packed: Tensor


_entries: dict[tuple[int, str], _Entry] = {}
_making = threading.RLock()


def packed(weight: Tensor, layout: str, pack: Pack) -> Tensor | None:
    """The weight in some layout.

    Args:
        weight: a dense tensor in main memory.
        layout: a name for what ``pack`` makes.
        pack: makes it; called when there is none yet, or none of these numbers.

    Returns:
        None for a tensor that is no parameter, since a passing one is not worth the work; and where
        memory is short.
    """
    found = _entries.get((id(weight), layout))
    if found is not None and _holds(found, weight):
        return found.packed
    if not isinstance(weight, nn.Parameter):
        return None
    with _making:
        found = _entries.get((id(weight), layout))
        if found is None or not _holds(found, weight):
            found = _make(weight, layout, pack) if _fits(2 * weight.nbytes) else None
    return None if found is None else found.packed


def forget(weights: Iterable[Tensor]) -> None:
    """Drop what was packed of some weights; it is made again when they are next used."""
    gone = {id(weight) for weight in weights}
    for key in [key for key in list(_entries) if key[0] in gone]:
        _entries.pop(key, None)


def packed_bytes() -> int:
    """The memory that all packed weights take together."""
    return sum(entry.packed.nbytes for entry in list(_entries.values()))


def _make(weight: Tensor, layout: str, pack: Pack) -> _Entry:
    key = (id(weight), layout)
    _entries.pop(key, None)  # first, so that both never exist
    entry = _Entry(
        weakref.ref(weight, partial(_drop, key)),
        StorageWeakRef(weight.untyped_storage()),
        _state(weight),
        pack(weight),
    )
    _entries[key] = entry
    pages.give_back([weight])
    return entry


def _fits(size: int) -> bool:
    """Whether so many bytes can be had without pushing other programs out."""
    if size < 2**20 or not MEMORY_INFO.exists():
        return True
    lines = dict(line.split(":", 1) for line in MEMORY_INFO.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 > size + SPARE_MEMORY


def _holds(entry: _Entry, weight: Tensor) -> bool:
    return (
        entry.weight() is weight
        and entry.storage.cdata == weight.untyped_storage()._cdata
        and entry.state == _state(weight)
    )


def _state(weight: Tensor) -> tuple[object, ...]:
    """What changes when the numbers, or where they lie, change."""
    version = 0 if weight.is_inference() else weight._version
    address = weight.data_ptr()
    beginning = ctypes.string_at(address, min(64, weight.numel() * weight.element_size()))
    return version, address, weight.dtype, weight.shape, weight.stride(), beginning


def _drop(key: tuple[int, str], weight: weakref.ref[Tensor]) -> None:
    entry = _entries.get(key)
    if entry is not None and entry.weight is weight:
        del _entries[key]
