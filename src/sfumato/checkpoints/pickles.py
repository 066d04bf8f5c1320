"""Tensors in torch's pickle files (``.bin``, ``.pt``, ``.ckpt``): only data comes out, never code.

A pickle can name any function to call. Nothing is called or imported here: `torch_file` takes the
file apart as data, and this module makes tensors of the bytes it points to. Objects of training
programs beside the weights (callbacks, configurations, optimizers) do no harm and are left out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import torch

from sfumato.checkpoints.files import open_regular, shown
from sfumato.checkpoints.mapping import MappedFile
from sfumato.checkpoints.tensors import (
    CHECK_MAPPED_BELOW,
    MAP_FROM_BYTES,
    TORCH_DTYPES,
    cast,
    require_finite,
    stay,
)
from sfumato.checkpoints.torch_file import (
    TorchFile,
    check_stored,
    read_torch_file,
    stored_tensors,
)
from sfumato.checkpoints.torch_rebuild import StoredTensor
from sfumato.errors import CheckpointError
from sfumato.runtime.pages import Settle

#: How deeply the tables of a file may lie in each other.
_MAX_DEPTH = 8


def read_pickle(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    check_finite: bool | None = None,
    mmap: bool | None = None,
    settle: Settle | None = None,
) -> dict[str, torch.Tensor]:
    """All tensors of a torch checkpoint, by name; arguments as for `read_safetensors`.

    A dictionary under the key ``state_dict`` is taken in place of the whole; entries that are no
    tensors (an epoch counter, say) are left out.

    Raises:
        CheckpointError: when the file is not readable, damaged, compressed, asks for anything
            that has no place in a checkpoint, or holds NaN or infinity.
    """
    file = read_torch_file(path)
    return load_tensors(
        file,
        stored_tensors(file),
        dtype=dtype,
        device=device,
        check_finite=check_finite,
        mmap=mmap,
        settle=settle,
    )


def read_pickled(path: str | os.PathLike[str]) -> Any:
    """The whole content of a small torch file, with its tensors, as plain dictionaries and lists.

    For files that hold more than one table, such as embeddings. Objects of unknown classes are
    `Opaque` notes.

    Raises:
        CheckpointError: as `read_pickle`.
    """
    file = read_torch_file(path)
    stored: dict[StoredTensor, str] = {}
    _replace(file.content, lambda tensor: stored.setdefault(tensor, str(len(stored))))
    tensors = load_tensors(file, {name: t for t, name in stored.items()}, mmap=False)
    return _replace(file.content, lambda tensor: tensors[stored[tensor]])


def _replace(
    value: Any,
    new: Callable[[StoredTensor], Any],
    done: dict[int, Any] | None = None,
    depth: int = 0,
) -> Any:
    """The same tables and lists with something else in place of each tensor."""
    if isinstance(value, StoredTensor):
        return new(value)
    if not isinstance(value, dict | list | tuple):
        return value
    if depth > _MAX_DEPTH:
        raise CheckpointError("The file's tables are nested too deeply.")
    done = {} if done is None else done
    if id(value) not in done:  # tables may share their parts; each is walked through once
        if isinstance(value, dict):
            result: Any = {k: _replace(v, new, done, depth + 1) for k, v in value.items()}
        else:
            result = type(value)(_replace(v, new, done, depth + 1) for v in value)
        done[id(value)] = result
    return done[id(value)]


def load_tensors(
    file: TorchFile,
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    check_finite: bool | None = None,
    mmap: bool | None = None,
    settle: Settle | None = None,
) -> dict[str, torch.Tensor]:
    """The numbers of some tensors of a file; arguments as for `read_safetensors`.

    Raises:
        CheckpointError: when a tensor is not what a checkpoint holds, or not finite.
    """
    for name, tensor in tensors.items():
        check_stored(file, name, tensor)
    mmap = file.size >= MAP_FROM_BYTES if mmap is None else mmap
    mapped = mmap and stay((t.dtype for t in tensors.values()), dtype)
    if check_finite is None:
        check_finite = not mapped or file.size < CHECK_MAPPED_BELOW
    result = {}
    with open_regular(file.path) as handle, _Storages(file, handle, mapped) as storages:
        storages.expect(t.storage.key for t in tensors.values())
        for name, stored in tensors.items():
            tensor = storages.view(stored)
            result[name] = converted = cast(tensor, dtype, torch.device(device))
            if check_finite:
                require_finite(name, converted, file.path, before=tensor)
            if settle is not None:
                settle(converted)
    return result


class _Storages:
    """The storages of an open file: mapped, or read and kept until their last use."""

    def __init__(self, file: TorchFile, handle: BinaryIO, mapped: bool) -> None:
        self.file, self.handle = file, handle
        self.uses: Counter[str] = Counter()
        self.kept: dict[str, torch.Tensor] = {}
        self.pages = MappedFile(handle, file.path) if mapped else None

    def __enter__(self) -> _Storages:
        return self

    def __exit__(self, *_: object) -> None:
        self.kept.clear()

    def expect(self, keys: Iterable[str]) -> None:
        self.uses.update(keys)

    def view(self, tensor: StoredTensor) -> torch.Tensor:
        key = tensor.storage.key
        if key not in self.kept:
            self.kept[key] = self._numbers(key, TORCH_DTYPES[tensor.storage.dtype])
        numbers = self.kept[key]
        self.uses[key] -= 1
        if not self.uses[key]:
            del self.kept[key]
        dtype = TORCH_DTYPES[tensor.dtype]
        if not numbers.numel():
            return torch.empty(tensor.shape, dtype=dtype)
        return numbers.view(dtype).as_strided(tensor.shape, tensor.stride, tensor.offset)

    def _numbers(self, key: str, dtype: torch.dtype) -> torch.Tensor:
        start, length = self.file.places[key]
        if self.pages is not None:
            return self.pages.numbers(start, length, dtype)
        raw = torch.empty(length, dtype=torch.uint8)
        self.handle.seek(start)
        if length and self.handle.readinto(raw.numpy()) != length:  # type: ignore[attr-defined]
            raise CheckpointError(
                f"{shown(self.file.path)} changed while it was read.", hint="Try again."
            )
        return raw.view(dtype)
