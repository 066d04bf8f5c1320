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

from sfumato.checkpoints import pickle_names
from sfumato.checkpoints.files import open_regular, shown
from sfumato.checkpoints.header import DTYPE_BITS, what_it_looks_like
from sfumato.checkpoints.pickle_machine import Name, PickleError, read_pickle_data
from sfumato.checkpoints.pickle_names import RefusedName
from sfumato.errors import CheckpointError

#: The pickle of a checkpoint with an optimizer's state has some 3 MB.
MAX_PICKLE_BYTES = 64 * 2**20

ZIP_START = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_FETCH_AGAIN = "Fetch the file again. Use a .safetensors file of the same model."

#: Names of the format of safetensors for what torch calls the same storage.
_STORAGES = {
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "ComplexFloatStorage": "C64",
    "UntypedStorage": "U8",
}
_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in the file, which tensors are views of."""

    key: str
    dtype: str
    size: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the file describes it; sizes are counted in numbers, not bytes.

    Attributes:
        dtype: in safetensors' spelling.
        shape, stride: as torch has them.
        offset: of the first number in the storage.
        storage: where the numbers are.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage: Storage


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
    content, stop = read_pickle_data(data, call=_call, persistent=_storage_of)
    if stop != len(data):
        raise PickleError(f"its pickle has {len(data) - stop} bytes behind its end")
    return TorchFile(path, content, places, size)


def _checked_members(file: BinaryIO, path: Path, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members by name, without what torch never writes."""
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
    table = {member.filename: member for member in members}
    if len(table) != len(members):
        raise PickleError("its archive holds two members of the same name")
    return table


def _place(file: BinaryIO, member: zipfile.ZipInfo, size: int) -> tuple[int, int]:
    """First byte and length of an uncompressed member."""
    file.seek(member.header_offset)
    local = file.read(30)
    if len(local) != 30 or not local.startswith(ZIP_START):
        raise PickleError("its archive is damaged")
    name, extra = (int.from_bytes(local[i : i + 2], "little") for i in (26, 28))
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
    magic, stop = read_pickle_data(data, call=_call)
    protocol, stop = (
        read_pickle_data(data, start=stop, call=_call) if magic == _LEGACY_MAGIC else (None, stop)
    )
    if protocol != _LEGACY_PROTOCOL:
        raise PickleError("it is a pickle, but none that torch wrote")
    system, stop = read_pickle_data(data, start=stop, call=_call)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleError("its numbers are stored in the order of another kind of machine")
    storages: dict[str, Storage] = {}

    def persistent(reference: Any) -> Storage:
        storage = _storage_of(reference)
        if storages.setdefault(storage.key, storage) != storage:
            raise PickleError("it describes one storage in two ways")
        return storage

    content, stop = read_pickle_data(data, start=stop, call=_call, persistent=persistent)
    keys, stop = read_pickle_data(data, start=stop, call=_call)
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


# Names that torch's pickles have


def _call(name: Name, arguments: tuple[Any, ...]) -> Any:
    rebuild = _REBUILD.get(str(name))
    if rebuild is None:
        return pickle_names.make(name, arguments)
    try:
        return rebuild(*arguments)
    except TypeError:
        raise PickleError(f"it calls `{name}` with wrong arguments") from None


def _storage_of(reference: Any) -> Storage:
    """A storage from ``("storage", class, key, device, size[, view])``."""
    if not isinstance(reference, tuple) or len(reference) not in (5, 6):
        raise PickleError("it refers to something that is no storage")
    label, kind, key, _, size, *view = reference
    name = kind.name if isinstance(kind, Name) else ""
    if label != "storage" or name not in _STORAGES or view not in ([], [None]):
        raise PickleError(f"it has the unsupported storage {name[:80]!r}")
    if not isinstance(key, str) or not _is_size(size):
        raise PickleError("it has a damaged storage")
    return Storage(key, _STORAGES[name], size)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or len(values) > 64 or not all(map(_is_size, values)):
        raise PickleError("it has a tensor with impossible sizes")
    return tuple(values)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    if not isinstance(storage, Storage) or not _is_size(offset):
        raise PickleError("it has a tensor without numbers")
    sizes, steps = _sizes(shape), _sizes(stride)
    if len(sizes) != len(steps):
        raise PickleError("it has a tensor with impossible sizes")
    return StoredTensor(storage.dtype, sizes, steps, offset, storage)


def _tensor_of_dtype(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> StoredTensor:
    """``_rebuild_tensor_v3``: the storage is plain bytes, the dtype is said beside it."""
    tensor = _tensor(storage, offset, shape, stride)
    name = dtype.name if isinstance(dtype, Name) and dtype.module == "torch" else ""
    if name not in _DTYPES:
        raise PickleError(f"it has a tensor of the unsupported dtype {name[:40]!r}")
    width = DTYPE_BITS[_DTYPES[name]] // 8
    view = Storage(tensor.storage.key, _DTYPES[name], tensor.storage.size // width)
    return StoredTensor(_DTYPES[name], tensor.shape, tensor.stride, tensor.offset, view)


def _first(value: Any, *_: Any) -> Any:
    """A parameter is its tensor; gradients and hooks are of no interest."""
    if not isinstance(value, StoredTensor):
        raise PickleError("it has a parameter that is no tensor")
    return value


def _of_type(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    """A tensor of a class derived from `torch.Tensor`."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise PickleError("it has a damaged tensor")
    if str(function) not in _PLAIN_REBUILD:
        raise PickleError(f"it has a tensor made by `{function}`, which is unsupported")
    return _call(function, arguments)


_PLAIN_REBUILD: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
}
_REBUILD: dict[str, Any] = {
    **_PLAIN_REBUILD,
    "torch._tensor._rebuild_from_type_v2": _of_type,
}
