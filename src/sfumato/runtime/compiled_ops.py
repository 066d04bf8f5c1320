"""The compiled kernels as operations that torch's compiler takes for one: linear layers,
convolutions, attention and norms.

`CallingKernels` puts itself before torch's functions while a network is traced. What is traced
then holds these operations, and the compiler fuses only what lies between them. When they run, they
are what `sfumato.runtime.kernels` computes, or torch's function where that has nothing for a call.
Their results lie in memory in one order, whoever computes them, as the compiler has to know it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sfumato.runtime import layer_kernels, pointwise
from sfumato.runtime.attention import fast_attention

#: Defined by hand: the wrapper of `torch.library.custom_op` costs 50 microseconds a call.
_library = torch.library.Library("sfumato", "DEF")


def _operation(
    schema: str, compute: Callable[..., Tensor], laid_out: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """An operation for traced programs.

    Args:
        schema: as torch writes it.
        compute: computes.
        laid_out: gives the result's shape and layout.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, compute, "CPU")
    torch.library.register_fake(f"sfumato::{name}", laid_out, lib=_library)
    return getattr(torch.ops.sfumato, name).default


def _compute_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = layer_kernels.linear(x, weight, bias)
    return (F.linear(x, weight, bias) if y is None else y).contiguous()


def _lay_out_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _compute_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    y = layer_kernels.convolve(x, weight, bias, stride, padding)
    y = torch.conv2d(x, weight, bias, stride, padding) if y is None else y
    return y.contiguous(memory_format=torch.channels_last)


def _lay_out_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    sides = (
        (side + 2 * padding - taps) // stride + 1
        for side, taps in zip(x.shape[2:], weight.shape[2:], strict=True)
    )
    shape = (x.shape[0], weight.shape[0], *sides)
    y = torch.empty(shape, dtype=x.dtype, device=x.device)
    return y.contiguous(memory_format=torch.channels_last)


def _compute_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """Rows of all heads side by side: ``(N, L, heads, E)``."""
    y = fast_attention(q, k, v, bias, scale=scale)
    y = F.scaled_dot_product_attention(q, k, v, bias, scale=scale) if y is None else y
    return y.transpose(1, 2).contiguous()


def _lay_out_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[3]))


def _compute_group_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, silu: bool
) -> Tensor:
    y = pointwise.group_norm(x, groups, weight, bias, eps, silu)
    if y is None:
        y = F.group_norm(x, groups, weight, bias, eps)
        y = F.silu(y, inplace=True) if silu else y
    return y.contiguous(memory_format=torch.channels_last)


def _lay_out_group_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, silu: bool
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


_linear = _operation(
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _compute_linear, _lay_out_linear
)
_convolve = _operation(
    "convolve(Tensor x, Tensor weight, Tensor? bias, int stride, int padding) -> Tensor",
    _compute_convolution,
    _lay_out_convolution,
)
_attend = _operation(
    "attend(Tensor q, Tensor k, Tensor v, Tensor? bias, float scale) -> Tensor",
    _compute_attention,
    _lay_out_attention,
)
_group_norm = _operation(
    "group_norm(Tensor x, int groups, Tensor? weight, Tensor? bias, float eps, bool silu)"
    " -> Tensor",
    _compute_group_norm,
    _lay_out_group_norm,
)


def _stand_in_for_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return _linear(input, weight, bias)


def _stand_in_for_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    strides, paddings, dilations = (_both(n) for n in (stride, padding, dilation))
    if None in (strides, paddings) or dilations != 1 or groups != 1 or input.ndim != 4:
        return None
    return _convolve(input, weight, bias, strides, paddings)


def _both(number: Any) -> int | None:
    """The number for both sides; None where they differ, or are words."""
    if isinstance(number, int):
        return number
    if isinstance(number, str) or not number or number[0] != number[-1]:
        return None
    return number[0]


def _stand_in_for_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if dropout_p or is_causal or enable_gqa or query.ndim != 4:
        return None
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return _attend(query, key, value, attn_mask, factor).transpose(1, 2)


_STAND_INS: Mapping[Any, Callable[..., Any]] = {
    F.linear: _stand_in_for_linear,
    torch.conv2d: _stand_in_for_conv2d,
    F.scaled_dot_product_attention: _stand_in_for_attention,
}


class CallingKernels(TorchFunctionMode):
    """While a network is traced: let what is traced call the kernels."""

    def __init__(self) -> None:
        super().__init__()
        #: The last group norm's result and arguments.
        self._last: tuple[Tensor, tuple[Any, ...]] | None = None

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        stand_in = _STAND_INS.get(func)
        if func is F.group_norm:
            stand_in = self._group_norm
        elif func is F.silu:
            stand_in = self._silu
        result = stand_in(*args, **(kwargs or {})) if stand_in is not None else None
        return func(*args, **(kwargs or {})) if result is None else result

    def _group_norm(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Any:
        if input.ndim != 4:
            return None
        args = (input, num_groups, weight, bias, eps)
        result = _group_norm(*args, False)
        self._last = (result, args)
        return result

    def _silu(self, input: Tensor, inplace: bool = False) -> Any:
        """Of a norm just computed, in one with it; the norm alone is then left out as unused.

        One that is to be overwritten is not: nobody who overwrites it looks at it again.
        """
        if self._last is None or self._last[0] is not input:
            return None
        _, args = self._last
        return _group_norm(*args, True)
