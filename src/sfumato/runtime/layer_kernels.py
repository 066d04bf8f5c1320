"""Linear layers and convolutions through the compiled kernels: `linear` and `convolve`.

They take what torch's functions take, and answer None where torch is to do it.

Weights are laid out for the kernels anew in each call. That costs a nanosecond or less for each
weight of a convolution and a quarter of one in a linear layer, about 3% of a network's step at
512x512. Kept, they would take as much memory as the network again, and a copy would have to follow
every change of the weights.

Everything is exact up to rounding. The root of the mean square error, relative to that of the
result: where bfloat16 is multiplied as such, inputs and weights of 3x3 convolutions are rounded
once more after their transform, which makes 0.0042 of the 0.0017 that rounding the result alone
leaves; where it is widened to float32 for the products, for want of instructions, nothing but the
result is rounded. In float32, 3x3 convolutions in tiles of 6 end at 1e-6 to 5e-6; all others, as
direct sums, below 1e-6.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.native.library import can_compute, library, multiplied_as
from sfumato.runtime.ordinary import NAMES, ordinary

#: Multiplications below which a call costs more than it saves.
LEAST_WORK = 2**20
#: Below these, laying out the weights takes too large a part of the time: rows of a linear layer,
#: pixels in a batch for a 3x3 convolution, and pixels for the larger tiles.
LEAST_ROWS = 256
LEAST_PIXELS = 128
LARGE_TILE_PIXELS = 256
#: Rows from which on linear layers pay where torch multiplies bfloat16 in steps of its own.
FEW_ROWS = 16
#: Channels below which a kernel's vectors stay too empty.
LEAST_CHANNELS = 16


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """``input @ weight.T + bias``: (..., length), (columns, length), (columns)."""
    if weight.ndim != 2 or input.ndim < 1 or input.shape[-1] != weight.shape[1]:
        return None
    columns, length = weight.shape
    rows = input.numel() // length if length else 0
    if not linear_pays(weight.dtype) or not _product_pays(rows, length, columns, weight.dtype):
        return None
    if not _plain(input, weight, bias):
        return None
    y = torch.empty((*input.shape[:-1], columns), dtype=input.dtype)
    _multiply(input.contiguous(), weight, bias, y, rows)
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
    """A convolution of (N, C, H, W) with 1x1 or, padded by 1, 3x3 taps, and without strides.

    Where torch has no instruction for products of a type, others are taken too: see `emulated`.

    The input may lie in memory in any order; the result is channels-last. That of a network's first
    layer is too, although torch computes it: its few channels fill no vectors, but all later layers
    keep the order that it begins with.
    """
    if input.ndim != 4 or weight.ndim != 4 or groups != 1 or isinstance(padding, str):
        return None
    if _pair(dilation) != (1, 1) or weight.shape[1] != input.shape[1]:
        return None
    steps, around = _pair(stride), _pair(padding)
    size = weight.shape[2]
    usual = size in (1, 3) and weight.shape[3] == size and around == (size // 2,) * 2
    if not usual or steps != (1, 1):
        return _convolve_directly(input, weight, bias, steps, around)
    (batch, channels, height, width), columns = input.shape, len(weight)
    pixels = batch * height * width
    tile = winograd_tile(channels, columns, pixels, weight.dtype) if size == 3 else 0
    pays = tile or (size == 1 and _product_pays(pixels, channels, columns, weight.dtype))
    if not pays and emulated(weight.dtype):
        return _convolve_directly(input, weight, bias, steps, around)
    first = channels < LEAST_CHANNELS <= columns and pixels * columns * channels >= LEAST_WORK
    if not (pays or first) or not _plain(input, weight, bias):
        return None
    x = input.contiguous(memory_format=torch.channels_last)
    if not pays:
        return torch.conv2d(x, weight, bias, padding=around)
    y = _map(input.dtype, batch, columns, height, width)
    if not tile:
        _multiply(x, weight, bias, y, pixels)
        return y
    sizes = _longs(batch, height, width, channels, columns, tile, 0)
    _call("winograd_once", x, y, weight, bias, sizes, _longs(*weight.stride()))
    return y


def emulated(dtype: torch.dtype) -> bool:
    """Whether torch multiplies a type without an instruction for it, while there are kernels.

    That is bfloat16 on most processors. Measured on an Intel Skylake with AVX-512, torch took 3 to
    5 times as long as in float32, and held to AVX2 6 to 30 times; so the kernels take all layers
    but the smallest.
    """
    return dtype is torch.bfloat16 and multiplied_as("bfloat16") == "float32"


def linear_pays(dtype: torch.dtype) -> bool:
    """Whether linear layers of this type are faster here than in torch, if they are large enough.

    Measured on one core with layers of a Stable Diffusion step, in turn with torch. On a Zen 4 the
    kernels reach 1.1 times torch's rate in bfloat16 and 1.2 times in float32. On an Intel Skylake,
    in float32, MKL's products are better: the kernels reach 0.81 to 0.88 of its rate with AVX-512,
    and 0.82 to 1.04 with both held to AVX2. So torch computes these wherever there is no
    instruction for bfloat16. (1x1 convolutions reach 0.89 to 1.14 and stay here, and so does all
    that is `emulated`.)
    """
    return emulated(dtype) or multiplied_as("bfloat16") == "bfloat16"


def winograd_tile(channels: int, columns: int, pixels: int, dtype: torch.dtype) -> int:
    """The tile size of a 3x3 convolution: 4 or 6; 0 for none.

    Args:
        channels, columns: in and out channels.
        pixels: of the whole batch.
        dtype: of the numbers; the larger tiles need products in float32.
    """
    work = 9 * pixels * channels * columns
    if min(channels, columns) < LEAST_CHANNELS or pixels < LEAST_PIXELS or work < LEAST_WORK:
        return 0
    large = pixels >= LARGE_TILE_PIXELS
    return 6 if large and multiplied_as(NAMES.get(dtype, "")) == "float32" else 4


def _product_pays(rows: int, length: int, columns: int, dtype: torch.dtype) -> bool:
    """Whether to multiply rows of some length with so many columns of weights here."""
    if emulated(dtype):
        enough = rows >= FEW_ROWS
    else:
        enough = rows >= LEAST_ROWS and columns >= LEAST_CHANNELS
    return enough and rows * length * columns >= LEAST_WORK


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, rows: int) -> None:
    """``rows`` dense rows of ``x`` times a weight with one tap."""
    columns, length = weight.shape[:2]
    strides = _longs(*weight.stride()[:2])
    _call("linear_once", x, y, weight, bias, rows, length, columns, strides)


def _convolve_directly(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    steps: tuple[int, int],
    around: tuple[int, int],
) -> Tensor | None:
    """Any convolution with one stride, as one product; None where torch does better."""
    (batch, channels, height, width), (columns, _, *taps) = input.shape, weight.shape
    if not emulated(weight.dtype) or steps[0] != steps[1] or min(*taps, *steps) < 1:
        return None
    sides = [
        (side + 2 * edge - tap) // steps[0] + 1
        for side, edge, tap in zip((height, width), around, taps, strict=True)
    ]
    pixels = batch * sides[0] * sides[1]
    work = pixels * columns * channels * taps[0] * taps[1]
    if min(*sides, *(edge + 1 for edge in around)) < 1 or pixels < FEW_ROWS or work < LEAST_WORK:
        return None
    if not _plain(input, weight, bias):
        return None
    x = input.contiguous(memory_format=torch.channels_last)
    y = _map(input.dtype, batch, columns, *sides)
    sizes = _longs(batch, height, width, channels, *sides, columns, *taps, steps[0], *around)
    _call("convolve_once", x, y, weight, bias, sizes, _longs(*weight.stride()))
    return y


def _map(dtype: torch.dtype, *shape: int) -> Tensor:
    """Room for a result, channels-last."""
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


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


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the library for the type of the first tensor."""
    function = getattr(library(), f"sfumato_{name}_{NAMES[arguments[0].dtype]}")
    given = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
    if function(*given, torch.get_num_threads()):
        raise MemoryError("There is no memory for a layer.")


def _longs(*numbers: int) -> Any:
    return (ctypes.c_long * len(numbers))(*numbers)
