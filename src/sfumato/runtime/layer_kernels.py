"""Linear layers and convolutions through the compiled kernels: `linear` and `convolve`.

They take what torch's functions take, and answer None where torch is to do it. Everything is exact
up to rounding. The root of the mean square error, relative to that of the result: in bfloat16,
inputs and weights of 3x3 convolutions are rounded once more after their transform, which makes
0.0042 of the 0.0017 that rounding the result alone leaves. In float32, 3x3 convolutions with fewer
than `LARGE_TILE_WEIGHTS` weights end at 1e-6 to 4e-6; all others, as direct sums, below 1e-6.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.native.layers import LARGE_TILE_WEIGHTS as LARGE_TILE_WEIGHTS
from sfumato.native.layers import tile_size
from sfumato.native.library import can_compute, library
from sfumato.runtime.ordinary import NAMES, ordinary
from sfumato.runtime.packed_weights import packed

#: Multiplications below which a call costs more than it saves.
LEAST_WORK = 2**20
LEAST_ROWS = 8
LEAST_COLUMNS = 16
#: Pixels of a picture up to which convolutions are not transformed: the weights of such layers are
#: half of a Stable Diffusion network and take 16/9 of the memory then, for 2% of the time. In
#: bfloat16 torch computes them at nearly our rate without a copy.
SMALL_MAP = 64


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """``input @ weight.T + bias``: (..., length), (columns, length), (columns)."""
    if weight.ndim != 2 or not _plain(input, weight, bias):
        return None
    columns, length = weight.shape
    rows = input.numel() // length if length else 0
    if input.shape[-1:] != weight.shape[1:] or not _linear_pays(rows, length, columns):
        return None
    if length % 2 and weight.dtype is torch.bfloat16:
        return None
    laid_out = packed(weight, "panels", _pack)
    if laid_out is None:
        return None
    x = input.contiguous()
    y = torch.empty((*input.shape[:-1], columns), dtype=input.dtype)
    _call("linear", x, y, laid_out, bias, rows, length, columns)
    return y


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor | None:
    """A convolution of (N, C, H, W) in any memory layout; the result is channels-last."""
    if input.ndim != 4 or weight.ndim != 4 or groups != 1 or isinstance(padding, str):
        return None
    steps, pads, gaps = _pair(stride), _pair(padding), _pair(dilation)
    if steps[0] != steps[1] or gaps != (1, 1) or min(pads) < 0 or min(steps) < 1:
        return None
    batch, channels, height, width = input.shape
    columns, inner, *kernel = weight.shape
    out = [
        (n + 2 * p - k) // steps[0] + 1
        for n, p, k in zip((height, width), pads, kernel, strict=True)
    ]
    pays = _linear_pays(batch * out[0] * out[1], inner * kernel[0] * kernel[1], columns)
    if inner != channels or min(out) < 1 or not pays or not _plain(input, weight, bias):
        return None
    if height * width <= SMALL_MAP and weight.dtype is torch.bfloat16:
        return None
    tile = 0
    if kernel == [3, 3] and steps[0] == 1 and pads == (1, 1):
        tile = winograd_tile(channels, columns, height * width, weight.dtype)
    pack = {0: _pack, 4: _pack_tiles_of_4, 6: _pack_tiles_of_6}[tile]
    laid_out = packed(weight, f"tiles of {tile}" if tile else "panels", pack)
    if laid_out is None:
        return None
    x = input.contiguous(memory_format=torch.channels_last)
    y = torch.empty((batch, columns, *out), dtype=input.dtype, memory_format=torch.channels_last)
    if tile:
        _call(
            "winograd",
            x,
            y,
            laid_out,
            bias,
            _longs(batch, height, width, channels, columns, tile, 0),
        )
    else:
        sizes = _longs(*(batch, height, width, channels, *out, columns), *kernel, steps[0], *pads)
        _call("convolve", x, y, laid_out, bias, sizes)
    return y


def winograd_tile(channels: int, columns: int, pixels: int, dtype: torch.dtype) -> int:
    """The tile size of a 3x3 convolution: 4 or 6; 0 for the direct way.

    Args:
        channels, columns: in and out channels.
        pixels: of one picture of the batch, so that a weight is always laid out alike while a
            batch's size changes.
    """
    return tile_size(
        channels, columns, pixels, is_float32=dtype is torch.float32, small_map=SMALL_MAP
    )


def _linear_pays(rows: int, length: int, columns: int) -> bool:
    return rows >= LEAST_ROWS and columns >= LEAST_COLUMNS and rows * length * columns >= LEAST_WORK


def _plain(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether there are kernels for these tensors: ordinary ones of one type, the bias dense."""
    return (
        can_compute(NAMES.get(weight.dtype, ""))
        and ordinary(input, weight, bias)
        and input.dtype is weight.dtype
        and (bias is None or (bias.dtype is weight.dtype and bias.shape == weight.shape[:1]))
        and (bias is None or bias.is_contiguous())
    )


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])


def _call(
    name: str, x: Tensor, y: Tensor, laid_out: Tensor, bias: Tensor | None, *rest: Any
) -> None:
    function = _function(name, x.dtype)
    address = None if bias is None else bias.data_ptr()
    arguments = (x.data_ptr(), y.data_ptr(), laid_out.data_ptr(), address, *rest)
    if function(*arguments, torch.get_num_threads()):
        raise MemoryError(f"There is no memory for a layer with {y.numel()} results.")


def _function(name: str, dtype: torch.dtype) -> Any:
    return getattr(library(), f"sfumato_{name}_{NAMES[dtype]}")


def _longs(*numbers: int) -> Any:
    return (ctypes.c_long * len(numbers))(*numbers)


def _rounded(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _pack(weight: Tensor) -> Tensor:
    columns, channels, *kernel = weight.shape
    height, width = kernel or (1, 1)
    strides = (*weight.stride(), 0, 0)[:4]
    length = _rounded(channels * height * width, 4 // weight.element_size())
    made = torch.empty(length * _rounded(columns, 16), dtype=weight.dtype)
    sizes = (columns, channels, height, width, _longs(*strides), torch.get_num_threads())
    _function("pack", weight.dtype)(weight.data_ptr(), made.data_ptr(), *sizes)
    return made


def _pack_tiles(weight: Tensor, tile: int) -> Tensor:
    columns, channels = weight.shape[:2]
    length = _rounded(channels, 32) * _rounded(columns, 16)
    made = torch.empty(tile * tile * length, dtype=weight.dtype)
    sizes = (columns, channels, _longs(*weight.stride()), tile, torch.get_num_threads())
    _function("pack_winograd", weight.dtype)(weight.data_ptr(), made.data_ptr(), *sizes)
    return made


def _pack_tiles_of_4(weight: Tensor) -> Tensor:
    return _pack_tiles(weight, 4)


def _pack_tiles_of_6(weight: Tensor) -> Tensor:
    return _pack_tiles(weight, 6)
