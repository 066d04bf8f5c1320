"""Tensors in torch's pickle files (``.bin``, ``.pt``, ``.ckpt``): only data comes out, never code.

A pickle can name any function to call. ``torch.load(weights_only=True)`` allows a short list of
harmless ones; what it refuses is refused here, with no way around. Before that the zip archive
around the pickle is looked at, because its sizes and names are the sender's claims.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sfumato.checkpoints.files import open_regular, shown
from sfumato.checkpoints.header import what_it_looks_like
from sfumato.checkpoints.tensors import (
    CHECK_FINITE_BELOW,
    MAP_FROM_BYTES,
    cast,
    require_finite,
)
from sfumato.errors import CheckpointError

_SAFER = "Use a .safetensors file of the same model."


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
        CheckpointError: when the file is not readable, damaged, compressed, holds anything but
            data, or holds NaN or infinity.
    """
    path = Path(path)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(64)
        is_zip = start.startswith(b"PK\x03\x04")
        if is_zip:
            file.seek(0)
            _check_archive(file, path, size)
    if not is_zip and (guess := what_it_looks_like(start)) and not start.startswith(b"\x80"):
        raise CheckpointError(f"{shown(path)} is not a torch checkpoint but {guess}.")
    mmap = size >= MAP_FROM_BYTES if mmap is None else mmap
    check_finite = size < CHECK_FINITE_BELOW if check_finite is None else check_finite
    table = _tensors_of(_load(path, mmap=mmap and is_zip), path)
    result = {}
    while table:
        name = next(iter(table))
        tensor = table.pop(name)  # popped, so that a converted tensor's source can be freed
        result[name] = converted = cast(tensor, dtype, torch.device(device))
        if check_finite:
            require_finite(name, converted, path, before=tensor)
    return result


def _check_archive(file: Any, path: Path, size: int) -> None:
    """Refuse what torch never writes: compressed members, sizes that do not add up, odd names."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except Exception as error:  # a hostile archive makes zipfile raise many kinds
        raise CheckpointError(
            f"{shown(path)} is a damaged archive: {error}.", hint="Fetch the file again."
        ) from None
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or (
        sum(m.file_size for m in members) > size
    ):
        raise CheckpointError(
            f"{shown(path)} is refused: it is compressed, as no torch checkpoint is, and could "
            "unpack to any size."
        )
    for member in members:
        parts = re.split(r"[/\\]", member.filename)
        if ".." in parts or not parts[0] or ":" in parts[0]:
            raise CheckpointError(
                f"{shown(path)} is refused: its member {member.filename[:80]!r} points outside."
            )


def _load(path: Path, *, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files use storages that torch warns about
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        # torch's own text advises to switch the protection off, so it is not passed on.
        unsafe = re.search(r"(?:GLOBAL|class|function) `?([\w.]+)", str(error))
        if "weights_only" in str(error).lower() or unsafe:
            what = f" (it asks for `{unsafe[1][:80]}`)" if unsafe else ""
            raise CheckpointError(
                f"{shown(path)} is refused: it holds more than numbers{what}, and loading it "
                "could run a program.",
                hint=_SAFER,
            ) from None
        raise CheckpointError(
            f"{shown(path)} is no sound torch checkpoint ({type(error).__name__}).",
            hint=f"Fetch the file again. {_SAFER}",
        ) from None


def _tensors_of(content: Any, path: Path) -> dict[str, torch.Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{shown(path)} holds no table of tensors.")
    table = {k: v.detach() for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not table:
        raise CheckpointError(f"{shown(path)} holds no tensor.")
    for name, tensor in table.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{shown(path)}: the tensor name {str(name)[:80]!r} is no text.")
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        # A view that repeats its memory could claim any size from a few bytes.
        if not plain or tensor.is_quantized or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{shown(path)}: tensor {name[:80]!r} is no plain tensor.")
    return table
