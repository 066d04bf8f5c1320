"""Names in torch's pickles that make tensors: what they stand for here.

`call` is the table for `pickle_machine`: the functions with which torch rebuilds tensors become
descriptions of where the numbers lie, everything else is up to `pickle_names`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sfumato.checkpoints import pickle_names
from sfumato.checkpoints.header import DTYPE_BITS
from sfumato.checkpoints.pickle_machine import Name, PickleError

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


def call(name: Name, arguments: tuple[Any, ...]) -> Any:
    """What a name in a torch pickle makes of its arguments; see `read_pickle_data`."""
    rebuild = _REBUILD.get(str(name))
    if rebuild is None:
        return pickle_names.make(name, arguments)
    try:
        return rebuild(*arguments)
    except TypeError:
        raise PickleError(f"it calls `{name}` with wrong arguments") from None


def storage_of(reference: Any) -> Storage:
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
    return call(function, arguments)


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
