"""The few things that differ between torch tensors and NumPy arrays in code that takes both.

What is not here (sums, products, slices, ``concatenate`` and ``stack`` of a `namespace`) is
spelled alike in both. Nothing is imported that is not there already.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def namespace(array: Any) -> Any:
    """The module that has the functions for an array: numpy, or torch."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def as_float32(array: Any) -> Any:
    """The array in float32."""
    return array.astype(np.float32, copy=False) if isinstance(array, np.ndarray) else array.float()


def in_type_of(array: Any, like: Any) -> Any:
    """The array in the type of another."""
    if isinstance(array, np.ndarray):
        return array.astype(like.dtype, copy=False)
    return array.to(like.dtype)


def numbers(values: Sequence[float], like: Any) -> Any:
    """Numbers as a float32 array of the other's kind, on its device."""
    if isinstance(like, np.ndarray):
        return np.array(values, dtype=np.float32)
    torch = namespace(like)
    return torch.tensor(values, dtype=torch.float32, device=like.device)


def blocks_of(array: Any, count: int) -> list[Any]:
    """The first axis in so many equal parts, without a copy."""
    size = len(array) // count
    return [array[i * size : (i + 1) * size] for i in range(count)]


def deviations(array: Any) -> Any:
    """The standard deviation of each picture ``(n, ...)``, shaped to be divided by."""
    axes = tuple(range(1, array.ndim))
    if isinstance(array, np.ndarray):
        return array.std(axis=axes, keepdims=True, ddof=1)
    return array.std(dim=axes, keepdim=True)
