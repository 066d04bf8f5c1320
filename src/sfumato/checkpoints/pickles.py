"""Tensors in torch's pickle files (``.bin``, ``.pt``, ``.ckpt``): only data comes out, never code.

A pickle can name any function to call. Nothing is called or imported here: `torch_file` takes the
file apart as data, and this module makes tensors of the bytes it points to. Objects of training
programs beside the weights (callbacks, configurations, optimizers) do no harm and are left out.
"""

from __future__ import annotations

import mmap as mmap_module
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import torch

from sfumato.checkpoints.files import open_regular, shown
from sfumato.checkpoints.header import DTYPE_BITS
from sfumato.checkpoints.tensors import (
    CHECK_FINITE_BELOW,
    MAP_FROM_BYTES,
    TORCH_DTYPES,
    cast,
    require_finite,
)
from sfumato.checkpoints.torch_file import (
    TorchFile,
    check_stored,
    read_torch_file,
    stored_tensors,
)
from sfumato.checkpoints.torch_rebuild import StoredTensor
from sfumato.errors import CheckpointError

#: How deeply the tables of a file may lie in each other.
_MAX_DEPTH = 8


def read_pickle(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    check_finite: bool | None = None,
    mmap: bool | None = None,
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
) -> dict[str, torch.Tensor]:
    """The numbers of some tensors of a file; arguments as for `read_safetensors`.

    Raises:
        CheckpointError: when a tensor is not what a checkpoint holds, or not finite.
    """
    for name, tensor in tensors.items():
        check_stored(file, name, tensor)
    mmap = file.size >= MAP_FROM_BYTES if mmap is None else mmap
    check_finite = file.size < CHECK_FINITE_BELOW if check_finite is None else check_finite
    stays = dtype is None or all(TORCH_DTYPES[t.dtype] == dtype for t in tensors.values())
    result = {}
    with open_regular(file.path) as handle, _Storages(file, handle, mmap and stays) as storages:
        storages.expect(t.storage.key for t in tensors.values())
        for name, stored in tensors.items():
            tensor = storages.view(stored)
            result[name] = converted = cast(tensor, dtype, torch.device(device))
            if check_finite:
                require_finite(name, converted, file.path, before=tensor)
    return result


class _Storages:
    """The storages of an open file as bytes: mapped, or read and kept until their last use."""

    def __init__(self, file: TorchFile, handle: BinaryIO, mmap: bool) -> None:
        self.file, self.handle = file, handle
        self.uses: Counter[str] = Counter()
        self.read: dict[str, torch.Tensor] = {}
        self.mapped: torch.Tensor | None = None
        if mmap:
            private = mmap_module.mmap(handle.fileno(), 0, access=mmap_module.ACCESS_COPY)
            self.mapped = torch.frombuffer(private, dtype=torch.uint8)

    def __enter__(self) -> _Storages:
        return self

    def __exit__(self, *_: object) -> None:
        self.read.clear()

    def expect(self, keys: Iterable[str]) -> None:
        self.uses.update(keys)

    def view(self, tensor: StoredTensor) -> torch.Tensor:
        key = tensor.storage.key
        raw = self._bytes(key, DTYPE_BITS[tensor.dtype] // 8)
        self.uses[key] -= 1
        if not self.uses[key]:
            self.read.pop(key, None)
        if not raw.numel():
            return torch.empty(tensor.shape, dtype=TORCH_DTYPES[tensor.dtype])
        numbers = raw.view(TORCH_DTYPES[tensor.dtype])
        return numbers.as_strided(
            tensor.shape, tensor.stride, numbers.storage_offset() + tensor.offset
        )

    def _bytes(self, key: str, width: int) -> torch.Tensor:
        start, length = self.file.places[key]
        if self.mapped is not None and start % width == 0 and start + length <= len(self.mapped):
            return self.mapped[start : start + length]
        if key not in self.read:
            raw = torch.empty(length, dtype=torch.uint8)
            self.handle.seek(start)
            if length and self.handle.readinto(raw.numpy()) != length:  # type: ignore[attr-defined]
                raise CheckpointError(
                    f"{shown(self.file.path)} changed while it was read.", hint="Try again."
                )
            self.read[key] = raw
        return self.read[key]
