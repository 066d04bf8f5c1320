"""Linear layers and convolutions by the compiled kernels, in float32 on NumPy arrays.

Maps are NHWC. torch's tensors come to the same kernels through `sfumato.runtime.layer_kernels`.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from sfumato.native.library import library

Array = np.ndarray[Any, Any]

#: Weights (in, out channels) up to which float32 takes the larger tiles, which cost four times
#: the direct way's memory for the weights.
LARGE_TILE_WEIGHTS = 640 * 960


def tile_size(
    channels: int, columns: int, pixels: int, *, is_float32: bool = True, small_map: int = 64
) -> int:
    """The tile size of a 3x3 convolution: 4 or 6; 0 for the direct way.

    Args:
        channels, columns: in and out channels.
        pixels: of one picture of the batch, so that a weight is always laid out alike while a
            batch's size changes.
        is_float32: the type of the numbers.
        small_map: pixels up to which convolutions are not transformed.
    """
    if pixels <= small_map or channels < 16 or columns < 16:
        return 0
    small_weights = channels * columns <= LARGE_TILE_WEIGHTS
    return 6 if is_float32 and small_weights else 4


def pack(weight: Array, threads: int) -> Array:
    """Weights ``(out, in)`` or ``(out, in, kh, kw)`` as the direct kernels read them."""
    columns, channels, *kernel = weight.shape
    height, width = kernel or (1, 1)
    made = _aligned(channels * height * width * _rounded(columns, 16))
    _call("pack", weight, made, columns, channels, height, width, _strides(weight), threads)
    return made


def pack_tiles(weight: Array, tile: int, threads: int) -> Array:
    """Weights ``(out, in, 3, 3)`` of a convolution in tiles of `tile_size`."""
    columns, channels = weight.shape[:2]
    made = _aligned(tile**2 * _rounded(channels, 32) * _rounded(columns, 16))
    _call("pack_winograd", weight, made, columns, channels, _strides(weight), tile, threads)
    return made


def linear(x: Array, packed: Array, bias: Array | None, columns: int, threads: int) -> Array:
    """``(rows, length)`` to ``(rows, columns)``."""
    x = np.ascontiguousarray(x)
    y = np.empty((len(x), columns), np.float32)
    _call("linear", x, y, packed, bias, *x.shape, columns, threads)
    return y


def convolve(
    x: Array,
    packed: Array,
    bias: Array | None,
    columns: int,
    size: int,
    stride: int,
    threads: int,
    padding: int = 0,
) -> Array:
    """``(N, H, W, C)`` to ``(N, H', W', columns)``; ``padding`` is on all sides."""
    batch, height, width, channels = x.shape
    rows, across = ((n + 2 * padding - size) // stride + 1 for n in (height, width))
    y = np.empty((batch, rows, across, columns), np.float32)
    sizes = (batch, height, width, channels, rows, across, columns, size, size, stride)
    _call("convolve", x, y, packed, bias, _longs(*sizes, padding, padding), threads)
    return y


def convolve_in_tiles(
    x: Array, packed: Array, bias: Array | None, columns: int, tile: int, threads: int
) -> Array:
    """A 3x3 convolution that keeps the map's size, by Winograd's method."""
    y = np.empty((*x.shape[:3], columns), np.float32)
    _call("winograd", x, y, packed, bias, _longs(*x.shape, columns, tile, 0), threads)
    return y


def _call(name: str, *arguments: Any) -> None:
    function = getattr(library(), f"sfumato_{name}_float32")
    given = (a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments)
    if function(*given):
        raise MemoryError("There is no memory for a layer.")


def _aligned(count: int) -> Array:
    """Room for numbers from a multiple of 64 bytes on, where the kernels read whole vectors."""
    raw = np.empty(count * 4 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * 4].view(np.float32)


def _longs(*numbers: int) -> Any:
    return (ctypes.c_long * len(numbers))(*numbers)


def _strides(weight: Array) -> Any:
    return _longs(*(*(step // weight.itemsize for step in weight.strides), 0, 0)[:4])


def _rounded(number: int, unit: int) -> int:
    return -(-number // unit) * unit
