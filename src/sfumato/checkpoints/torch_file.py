"""Files that `torch.save` wrote: the pickle in them as data, and where each tensor's bytes lie.

Since version 1.6 torch writes a zip archive with a pickle and one uncompressed member for each
storage; before that, a sequence of pickles followed by the storages. Either is taken apart here
without torch, and nothing but the pickles is read; `pickles` makes tensors of it.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sfumato.checkpoints.files import open_regular, shown
from sfumato.checkpoints.header import DTYPE_BITS, what_it_looks_like
from sfumato.checkpoints.pickle_machine import (
    Opaque,
    PickleError,
    UnusualKey,
    read_pickle_data,
)
from sfumato.checkpoints.pickle_names import RefusedName
from sfumato.checkpoints.torch_rebuild import Storage, StoredTensor, call, storage_of
from sfumato.errors import CheckpointError

#: The pickle of a checkpoint with an optimizer's state has some 3 MB.
MAX_PICKLE_BYTES = 64 * 2**20

#: How deeply a table of tensors may lie in others: ``{"state_dict": {"state_dict": {...}}}``.
_MAX_DEPTH = 8

#: The product of the other sizes of an empty tensor.
_MAX_EMPTY = 2**40

ZIP_START = b"PK\x03\x04"
_ENCRYPTED, _UTF_8 = 0x1, 0x800  # bits of a member's flags
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_FETCH_AGAIN = "Fetch the file again. Use a .safetensors file of the same model."


@dataclass(frozen=True)
class TorchFile:
    """A file taken apart.

    Attributes:
        path: of the file.
        content: what the pickle holds, with each tensor a `StoredTensor`.
        places: first byte and length of every storage, by key.
        size: of the file in bytes.
    """

    path: Path
    content: Any
    places: Mapping[str, tuple[int, int]]
    size: int


def read_torch_file(path: str | os.PathLike[str]) -> TorchFile:
    """Take a file apart; reads no numbers.

    Raises:
        CheckpointError: when the path is no readable file; when the file is damaged, compressed,
            of another kind, or asks for something that has no place in a checkpoint.
    """
    path = Path(path)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(512)
        file.seek(0)
        try:
            if start.startswith(ZIP_START):
                return _read_zip(file, path, size)
            return _read_legacy(file, path, size, start)
        except RefusedName as error:
            raise CheckpointError(
                f"{shown(path)} is refused: it holds more than numbers ({error}), and a careless "
                "reader would run a program.",
                hint="Use a .safetensors file of the same model.",
            ) from None
        except PickleError as error:
            raise CheckpointError(
                f"{shown(path)} is no sound torch checkpoint: {error}.", hint=_FETCH_AGAIN
            ) from None


# The zip archive


def _read_zip(file: BinaryIO, path: Path, size: int) -> TorchFile:
    members = _checked_members(file, path, size)
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise PickleError("its archive does not hold one `data.pkl` in one folder")
    folder = pickles[0].partition("/")[0]
    if f"{folder}/constants.pkl" in members:
        raise PickleError("it is a program in TorchScript, not a table of tensors")
    order = members.get(f"{folder}/byteorder")
    if order is not None and _member_bytes(file, order, size, 16) != b"little":
        raise PickleError("its numbers are stored in the order of another kind of machine")
    places = {
        name.removeprefix(f"{folder}/data/"): _place(file, member, size)
        for name, member in members.items()
        if name.startswith(f"{folder}/data/")
    }
    data = _member_bytes(file, members[pickles[0]], size, MAX_PICKLE_BYTES)
    content, stop = read_pickle_data(data, call=call, persistent=storage_of)
    if stop != len(data):
        raise PickleError(f"its pickle has {len(data) - stop} bytes behind its end")
    return TorchFile(path, content, places, size)


def _checked_members(file: BinaryIO, path: Path, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members by name, without what torch never writes."""
    try:
        with zipfile.ZipFile(file) as archive:
            members, comment = archive.infolist(), archive.comment
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
    if comment or min((m.header_offset for m in members), default=0):
        raise PickleError("its archive has something before or after it, and may hide a second one")
    for member in members:
        if member.flag_bits & _ENCRYPTED:
            raise PickleError("its archive claims to be encrypted")
        parts = re.split(r"[/\\]", member.filename)
        if ".." in parts or not parts[0] or ":" in parts[0]:
            raise CheckpointError(
                f"{shown(path)} is refused: its member {member.filename[:80]!r} points outside."
            )
    table = {member.filename: member for member in members}
    if len(table) != len(members):
        raise PickleError("its archive holds two members of the same name")
    return table


def _place(file: BinaryIO, member: zipfile.ZipInfo, size: int) -> tuple[int, int]:
    """First byte and length of an uncompressed member."""
    if not 0 <= member.header_offset < size:
        raise PickleError("its archive is damaged")
    file.seek(member.header_offset)
    local = file.read(30)
    if len(local) != 30 or not local.startswith(ZIP_START):
        raise PickleError("its archive is damaged")
    name, extra = (int.from_bytes(local[i : i + 2], "little") for i in (26, 28))
    encoding = "utf-8" if member.flag_bits & _UTF_8 else "cp437"
    if file.read(name) != member.orig_filename.encode(encoding, "replace"):
        raise PickleError("its archive has a member with two names")
    start = member.header_offset + 30 + name + extra
    if start + member.file_size > size or member.file_size != member.compress_size:
        raise PickleError("its archive is damaged")
    return start, member.file_size


def _member_bytes(file: BinaryIO, member: zipfile.ZipInfo, size: int, limit: int) -> bytes:
    start, length = _place(file, member, size)
    if length > limit:
        raise PickleError(f"`{member.filename[:80]}` in its archive is absurdly large")
    file.seek(start)
    return file.read(length)


# The sequence of pickles


def _read_legacy(file: BinaryIO, path: Path, size: int, start: bytes) -> TorchFile:
    if start[257:262] == b"ustar":
        raise CheckpointError(
            f"{shown(path)} is a tar archive, as torch wrote them before 2017.",
            hint="Use a .safetensors file of the same model.",
        )
    if (guess := what_it_looks_like(start)) and not start.startswith(b"\x80"):
        raise CheckpointError(f"{shown(path)} is not a torch checkpoint but {guess}.")
    data = file.read(MAX_PICKLE_BYTES)
    magic, stop = read_pickle_data(data, call=call)
    protocol, stop = (
        read_pickle_data(data, start=stop, call=call) if magic == _LEGACY_MAGIC else (None, stop)
    )
    if protocol != _LEGACY_PROTOCOL:
        raise PickleError("it is a pickle, but none that torch wrote")
    system, stop = read_pickle_data(data, start=stop, call=call)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleError("its numbers are stored in the order of another kind of machine")
    storages: dict[str, Storage] = {}

    def persistent(reference: Any) -> Storage:
        storage = storage_of(reference)
        if storages.setdefault(storage.key, storage) != storage:
            raise PickleError("it describes one storage in two ways")
        return storage

    content, stop = read_pickle_data(data, start=stop, call=call, persistent=persistent)
    keys, stop = read_pickle_data(data, start=stop, call=call)
    return TorchFile(path, content, _legacy_places(file, keys, storages, stop, size), size)


def _legacy_places(
    file: BinaryIO, keys: Any, storages: Mapping[str, Storage], position: int, size: int
) -> dict[str, tuple[int, int]]:
    """Where the storages lie: one behind the other, each behind its number of elements."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise PickleError("it does not list its storages")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        storage = storages.get(key)
        file.seek(position)
        count = int.from_bytes(file.read(8), "little")
        if storage is None or key in places or count != storage.size:
            raise PickleError("its list of storages contradicts its pickle")
        length = count * DTYPE_BITS[storage.dtype] // 8
        places[key] = position + 8, length
        position += 8 + length
        if position > size:
            raise PickleError(f"it is cut short: {position} bytes expected, {size} found")
    return places


# Tensors


def table_of(value: Any) -> Mapping[Any, Any] | None:
    """The entries of a dictionary, or of the module that served as one in old files."""
    if isinstance(value, Opaque):
        state = value.state if isinstance(value.state, Mapping) else {}
        inner = value.items or state.get("_parameters") or state
        if not isinstance(inner, Mapping):
            return None
        return {k: v for k, v in inner.items() if isinstance(v, StoredTensor)}
    return value if isinstance(value, Mapping) else None


def stored_tensors(file: TorchFile) -> dict[str, StoredTensor]:
    """The table of tensors in a checkpoint, wherever it lies; its tensors are checked.

    Raises:
        CheckpointError: when there is none, or a tensor is not what a checkpoint holds.
    """
    content = file.content
    for _ in range(_MAX_DEPTH):
        content = content.items if isinstance(content, Opaque) else content
        inner = content.get("state_dict") if isinstance(content, Mapping) else None
        if not isinstance(inner, Mapping | Opaque):
            break
        content = inner
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{shown(file.path)} holds no table of tensors.")
    table = {k: v for k, v in content.items() if isinstance(v, StoredTensor)}
    if not table:
        raise CheckpointError(f"{shown(file.path)} holds no tensor.")
    for name, tensor in table.items():
        if not isinstance(name, str):
            kind = str(name) if isinstance(name, UnusualKey) else type(name).__name__
            raise CheckpointError(
                f"{shown(file.path)}: the name of a tensor is no text but {kind}."
            )
        check_stored(file, name, tensor)
    return table


def check_stored(file: TorchFile, name: str, tensor: StoredTensor) -> None:
    """Raise `CheckpointError` unless the tensor is plain and lies in the file.

    Plain means that no number is used twice: a view that repeats its memory could claim any size
    from a few bytes.
    """
    label = f"{shown(file.path)}: tensor {name[:80]!r}"
    width = DTYPE_BITS[tensor.dtype] // 8
    start_and_length = file.places.get(tensor.storage.key)
    if start_and_length is None or start_and_length[1] != tensor.storage.size * width:
        raise CheckpointError(f"{label} has no numbers in the file.", hint="Fetch the file again.")
    count, last = 1, tensor.offset
    for size, step in zip(tensor.shape, tensor.stride, strict=True):
        count *= size or 1  # sizes beside a zero count too: torch cannot hold (0, 2^60, 2^60)
        last += (size - 1) * step
        if count > max(tensor.storage.size, _MAX_EMPTY):
            break
    empty = 0 in tensor.shape
    inside = count <= tensor.storage.size and last < tensor.storage.size
    if not (inside or (empty and count <= _MAX_EMPTY)):
        raise CheckpointError(f"{label} is no plain tensor.")
