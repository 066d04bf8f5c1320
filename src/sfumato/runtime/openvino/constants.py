"""Weights as constants of a graph, on the memory that they are in: an array or a mapped file."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov

from sfumato.checkpoints.arrays import StoredTensor

#: OpenVINO's names of the types that weights are stored in.
STORED_TYPES = {"F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16"}
ARRAY_TYPES = {"float64": "f64", "float32": "f32", "float16": "f16"}


def tensor_of(
    value: StoredTensor | np.ndarray[Any, Any], shape: tuple[int, ...] | None = None
) -> ov.Tensor:
    """A weight, perhaps seen in another shape, as a tensor on the same memory."""
    if isinstance(value, StoredTensor):
        raw, name = value.raw, STORED_TYPES[value.dtype]
    else:
        raw, name = value, ARRAY_TYPES[value.dtype.name]
    raw = np.ascontiguousarray(raw)
    return ov.Tensor(raw, ov.Shape(shape or raw.shape), getattr(ov.Type, name))
