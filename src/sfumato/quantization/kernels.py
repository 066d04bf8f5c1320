"""The kernels in C behind the layers: addresses and sizes from tensors."""

from __future__ import annotations

from ctypes import c_long
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.gguf.types import BY_NAME
from sfumato.native.library import VNNI, features, library
from sfumato.native.library import can_compute as can_store
from sfumato.runtime.ordinary import NAMES

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
#: Types of blocks, by the numbers that `blocks.h` has for them.
_BLOCKS = {"Q8_0": 0, "Q4_0": 1, "Q4_1": 2}


def available() -> bool:
    """Whether this machine has the kernels for 8-bit integers."""
    return bool(features() & VNNI)


def can_compute(x: Tensor) -> bool:
    """Whether the kernels take this input."""
    return available() and x.dtype in _TYPES and x.device.type == "cpu" and x.numel() > 0


def linear(
    x: Tensor, packed: Tensor, scales: Tensor, offsets: Tensor, bias: Tensor | None
) -> Tensor:
    """A linear layer on the last axis of ``x``; see `Int8Tensor` for the weight."""
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], len(scales))
    bias = None if bias is None else bias.detach().float().contiguous()
    failed = _library().sfumato_linear_int8(
        x.data_ptr(), out.data_ptr(), _TYPES[x.dtype], packed.data_ptr(), scales.data_ptr(),
        offsets.data_ptr(), None if bias is None else bias.data_ptr(),
        x.numel() // x.shape[-1], x.shape[-1], len(scales), torch.get_num_threads(),
    )  # fmt: skip
    return _finished(out, failed)


def convolve(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    shape: tuple[int, ...],
    stride: int,
    padding: tuple[int, int],
) -> Tensor:
    """A convolution of ``x`` (batch, channels, height, width); the result is channels-last."""
    rows = x.detach().movedim(1, -1).contiguous()
    batch, height, width, channels = rows.shape
    outputs, _, kernel_height, kernel_width = shape
    out_height = (height + 2 * padding[0] - kernel_height) // stride + 1
    out_width = (width + 2 * padding[1] - kernel_width) // stride + 1
    out = rows.new_empty(batch, out_height, out_width, outputs)
    bias = None if bias is None else bias.detach().float().contiguous()
    sizes = (c_long * 12)(
        batch, height, width, channels, out_height, out_width, outputs, kernel_height,
        kernel_width, stride, *padding,
    )  # fmt: skip
    failed = _library().sfumato_convolve_int8(
        rows.data_ptr(), out.data_ptr(), _TYPES[x.dtype], packed.data_ptr(), scales.data_ptr(),
        offsets.data_ptr(), None if bias is None else bias.data_ptr(), sizes,
        torch.get_num_threads(),
    )  # fmt: skip
    return _finished(out, failed).movedim(-1, 1)


def winograd(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    outputs: int,
    padding: tuple[int, int],
    *,
    direct: bool = False,
) -> Tensor:
    """A 3x3 convolution with stride 1.

    The weight is that of a `WinogradTensor`, or (``direct``) of an `Int8Tensor` with a multiple of
    16 inputs, which is transformed in the call.
    """
    rows = x.detach().movedim(1, -1).contiguous()
    batch, height, width, channels = rows.shape
    sizes = (c_long * 8)(batch, height, width, channels, outputs, *padding, direct)
    out = rows.new_empty(batch, height + 2 * padding[0] - 2, width + 2 * padding[1] - 2, outputs)
    bias = None if bias is None else bias.detach().float().contiguous()
    failed = _library().sfumato_winograd_int8(
        rows.data_ptr(), out.data_ptr(), _TYPES[x.dtype], packed.data_ptr(), scales.data_ptr(),
        offsets.data_ptr(), None if bias is None else bias.data_ptr(), sizes,
        torch.get_num_threads(),
    )  # fmt: skip
    return _finished(out, failed).movedim(-1, 1)


def _library() -> Any:
    found = library()
    assert found is not None  # else `available` is False
    return found


def _finished(out: Tensor, failed: int) -> Tensor:
    if failed:
        raise MemoryError("There is not enough memory for an 8-bit layer.")
    return out


def can_expand(raw: Tensor, kind: str, dtype: torch.dtype) -> bool:
    """Whether the kernels make plain numbers of such blocks."""
    return can_store(NAMES.get(dtype, "")) and kind in _BLOCKS and raw.device.type == "cpu"


def expand(raw: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """The plain numbers of blocks of 32, as one row."""
    raw = raw.contiguous()
    blocks = raw.numel() // BY_NAME[kind].size
    out = torch.empty(blocks * 32, dtype=dtype)
    function = getattr(_library(), f"sfumato_expand_blocks_{NAMES[dtype]}")
    function(raw.data_ptr(), out.data_ptr(), _BLOCKS[kind], blocks, torch.get_num_threads())
    return out
