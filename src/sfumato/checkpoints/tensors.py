"""Tensors in safetensors files: read with every check made first, written atomically.

Large files are memory-mapped (no second copy in memory, pages shared between processes); small
files, and files whose numbers are converted on the way, are read tensor by tensor.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors.torch import save_file

from sfumato.checkpoints.atomic import atomic_path
from sfumato.checkpoints.files import open_regular, shown
from sfumato.checkpoints.header import Header, TensorEntry, parse_header
from sfumato.checkpoints.mapping import CHECK_MAPPED_BELOW, MAP_FROM_BYTES, MappedFile
from sfumato.errors import CheckpointError, InputError
from sfumato.runtime.pages import Settle

#: How much of a tensor is converted at a time; a multiple of every dtype's size.
_PIECE_BYTES = 2**22

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}


def read_safetensors(
    path: str | os.PathLike[str],
    *,
    names: Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    check_finite: bool | None = None,
    mmap: bool | None = None,
    header: Header | None = None,
    settle: Settle | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, by name.

    Args:
        path: the file.
        names: of the tensors to read, which the file has to hold; ``None`` for all.
        dtype: floating-point tensors are converted to it one at a time; others stay as they are.
            ``None`` keeps what the file holds.
        device: where the tensors go.
        check_finite: refuse NaN and infinity; ``None`` checks all but mapped files from 2 GiB on.
        mmap: ``True`` maps the file, ``False`` reads it, ``None`` maps from 64 MiB on. Mapped
            tensors are private: writing to them does not change the file.
        header: of the file, if it was read already; it is read again when the file has changed.
        settle: gets each tensor once it is there and checked; see `sfumato.runtime.pages.settling`.

    Raises:
        CheckpointError: when the file is not readable, not sound, holds a dtype that torch lacks,
            or holds NaN or infinity.
    """
    path = Path(path)
    device = torch.device(device)
    with open_regular(path) as file:
        if header is None or not header.is_of(file):
            header = parse_header(file, path)
        if mmap is None:
            mmap = header.file_size >= MAP_FROM_BYTES
        if names is not None:
            header = _narrowed(header, names, path)
        mapped = mmap and stay((entry.dtype for entry in header.entries.values()), dtype)
        if check_finite is None:
            check_finite = not mapped or header.file_size < CHECK_MAPPED_BELOW
        pages = MappedFile(file, path) if mapped else None
        piece = torch.empty(0 if mapped else _PIECE_BYTES, dtype=torch.uint8)
        result: dict[str, torch.Tensor] = {}
        for name, entry in header.entries.items():
            stored = _torch_dtype(path, name, entry)
            if pages is not None:
                tensor = pages.numbers(entry.start, entry.stop - entry.start, stored)
                tensor = tensor.view(entry.shape)
            else:
                tensor = _read(file, path, entry, stored, dtype, piece)
            result[name] = tensor.to(device)
            if check_finite and not is_finite(result[name]):
                original = _read(file, path, entry, stored, None, piece)
                require_finite(name, result[name], path, before=original)
            if settle is not None:
                settle(result[name])
        if os.fstat(file.fileno()).st_size != header.file_size:
            raise _changed(path)
    return result


def save_safetensors(
    tensors: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to a safetensors file, whole or not at all.

    Tensors may lie on any device, be views, or share memory (each name gets its own copy in the
    file). ``metadata`` is text beside them; ``{"format": "pt"}`` is added, which transformers asks
    for.

    Raises:
        InputError: when a value is no dense tensor, or metadata is not text.
        OSError: when the disk refuses.
    """
    texts = {"format": "pt", **(metadata or {})}
    for key, value in texts.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InputError(f"Metadata has to be text, but {key!r} is {type(value).__name__}.")
    with atomic_path(path) as temporary:
        save_file(ready_to_write(tensors), temporary, metadata=texts)


def stay(stored: Iterable[str], dtype: torch.dtype | None) -> bool:
    """Whether `cast` changes none of these stored dtypes, so that mapping saves a copy."""
    known = (TORCH_DTYPES.get(name) for name in stored)
    return dtype is None or all(t is None or not t.is_floating_point or t == dtype for t in known)


def cast(tensor: torch.Tensor, dtype: torch.dtype | None, device: torch.device) -> torch.Tensor:
    """Move to ``device``, and to ``dtype`` if floating-point; the tensor itself when it fits."""
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.to(device=device, dtype=wanted)


def cast_all(
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype,
    device: torch.device,
    settle: Settle | None,
) -> dict[str, torch.Tensor]:
    """`cast` for tensors by name, one at a time: none of the given ones is left. For ``settle`` see
    `read_safetensors`.
    """
    result: dict[str, torch.Tensor] = {}
    for name in list(tensors):
        result[name] = cast(tensors.pop(name), dtype, device)
        if settle is not None:
            settle(result[name])
    return result


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are finite; one pass at memory speed, without a temporary copy."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
        return True
    if tensor.itemsize == 1:  # torch computes nothing in 8-bit floats
        tensor = tensor.to(torch.bfloat16)
    if math.isfinite(tensor.sum().item()):  # NaN and infinity never leave a sum
        return True
    low, high = torch.aminmax(
        tensor
    )  # the sum of finite numbers may be too large; NaN becomes both
    return math.isfinite(low.item()) and math.isfinite(high.item())


def require_finite(
    name: str, tensor: torch.Tensor, path: Path, *, before: torch.Tensor | None = None
) -> None:
    """Raise `CheckpointError` naming the tensor when it holds NaN or infinity.

    ``before`` is the tensor before its conversion: when that one is finite, the message blames
    the dtype asked for rather than the file.
    """
    if is_finite(tensor):
        return
    if before is not None and before.dtype != tensor.dtype and is_finite(before):
        raise CheckpointError(
            f"{shown(path)}: tensor {name!r} has numbers too large for {tensor.dtype}.",
            hint="Load in bfloat16 or float32.",
        )
    count = int((~torch.isfinite(tensor.float())).sum())
    raise CheckpointError(
        f"{shown(path)}: tensor {name!r} holds {count} NaN or infinite numbers.",
        hint="Training or conversion went wrong; `check_finite=False` loads the file anyway.",
    )


def _narrowed(header: Header, names: Iterable[str], path: Path) -> Header:
    """The header of some tensors, in the order of their bytes."""
    wanted = set(names)
    if missing := wanted - set(header.entries):
        raise CheckpointError(f"{shown(path)} has no tensor {min(missing)[:80]!r}.")
    entries = {name: entry for name, entry in header.entries.items() if name in wanted}
    return replace(header, entries=entries)


def _read(
    file: BinaryIO,
    path: Path,
    entry: TensorEntry,
    stored: torch.dtype,
    dtype: torch.dtype | None,
    piece: torch.Tensor,
) -> torch.Tensor:
    """One tensor, converted piece by piece, so that it is never in memory twice.

    One buffer for the pieces serves all tensors: taken and freed each time, it would leave holes.
    """
    size = entry.stop - entry.start
    file.seek(entry.start)
    if stay([entry.dtype], dtype):
        raw = torch.empty(size, dtype=torch.uint8)
        _fill(raw, file, path)
        return raw.view(stored).view(entry.shape)
    result = torch.empty(entry.shape, dtype=dtype)
    left = result.view(-1)
    while len(left):
        piece = piece[: len(left) * stored.itemsize]
        _fill(piece, file, path)
        numbers = piece.view(stored)
        left[: len(numbers)] = numbers
        left = left[len(numbers) :]
    return result


def _fill(raw: torch.Tensor, file: BinaryIO, path: Path) -> None:
    if raw.numel() and file.readinto(raw.numpy()) != raw.numel():  # type: ignore[attr-defined]
        raise _changed(path)


def _changed(path: Path) -> CheckpointError:
    return CheckpointError(f"{shown(path)} changed while it was read.", hint="Try again.")


def _torch_dtype(path: Path, name: str, entry: TensorEntry) -> torch.dtype:
    dtype = TORCH_DTYPES.get(entry.dtype)
    if dtype is None:
        raise CheckpointError(
            f"{shown(path)}: tensor {name!r} has the unsupported dtype {entry.dtype}.",
            hint="Get a file in 16-bit or 32-bit floating point.",
        )
    return dtype


def ready_to_write(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous CPU tensors, each with memory of its own, as the file formats need."""
    ready: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise InputError(f"'{name}' is no dense tensor but {type(tensor).__name__}.")
        plain = tensor.detach().to("cpu").contiguous()
        storage = plain.untyped_storage().data_ptr()
        if storage in seen or plain.untyped_storage().nbytes() != plain.nbytes:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        ready[name] = plain
    return ready
