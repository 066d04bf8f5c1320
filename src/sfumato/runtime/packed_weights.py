"""Weights laid out for the compiled kernels, made on first use and dropped with the weight.

A packed copy is taken again only if the weight is the same tensor on the same memory with the same
numbers. Memory is recognised by its storage, changes by torch's version counter; what goes past
the counter (``weight.data.add_(...)``) is noticed by the first 64 bytes, which any change of the
whole weight changes. The original lies idle from then on: where it is a file's pages unchanged,
they are given back.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from sfumato.runtime import pages

Pack = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class _Entry:
    weight: weakref.ref[Tensor]
    storage: StorageWeakRef
    state: tuple[object, ...]
    packed: Tensor


_entries: dict[tuple[int, str], _Entry] = {}
_seen: dict[int, weakref.ref[Tensor]] = {}
_making = threading.RLock()


def packed(weight: Tensor, layout: str, pack: Pack) -> Tensor | None:
    """The weight in some layout.

    Args:
        weight: a dense tensor in main memory.
        layout: a name for what ``pack`` makes.
        pack: makes it; called when there is none yet, or none of these numbers.

    Returns:
        None for a tensor that is no parameter and seen for the first time: a passing one is not
        worth the work.
    """
    found = _entries.get((id(weight), layout))
    if found is not None and _holds(found, weight):
        return found.packed
    if not isinstance(weight, nn.Parameter) and not _seen_before(weight):
        return None
    with _making:
        found = _entries.get((id(weight), layout))
        if found is None or not _holds(found, weight):
            found = _make(weight, layout, pack)
    return found.packed


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
    if isinstance(weight, nn.Parameter):
        pages.give_back([weight])
    return entry


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


def _seen_before(weight: Tensor) -> bool:
    seen = _seen.get(id(weight))
    if seen is not None and seen() is weight:
        return True
    _seen[id(weight)] = weakref.ref(weight, partial(_forget, id(weight)))
    return False


def _forget(key: int, weight: weakref.ref[Tensor]) -> None:
    if _seen.get(key) is weight:
        del _seen[key]


def empty_like_packed(elements: int, dtype: torch.dtype) -> Tensor:
    """Memory for a packed weight; torch's allocator starts it at a multiple of 64 bytes."""
    return torch.empty(elements, dtype=dtype)
