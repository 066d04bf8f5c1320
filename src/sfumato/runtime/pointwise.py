"""Faster stand-ins for torch's norms, and for a GELU gate, on the processor.

Each takes what torch's function takes, and answers None where torch is to do it: for gradients,
other devices, types and memory layouts, and for wrong arguments, which torch refuses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.native import pointwise
from sfumato.native.library import can_compute
from sfumato.runtime.ordinary import NAMES, ordinary


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = False,
    overwrite: bool = False,
) -> Tensor | None:
    """Group norm of ``(N, C, H, W)`` or ``(N, C, L)`` whose channels lie side by side.

    With ``silu``, that activation in the same pass; with ``overwrite``, all in the input's place.
    Beyond that, arguments as in torch's function.
    """
    if input.ndim not in (3, 4) or not _computable(input, weight, bias):
        return None
    batch, channels = input.shape[:2]
    if num_groups < 1 or channels % num_groups or input.numel() == num_groups:
        return None
    if not _fits(weight, channels) or not _fits(bias, channels) or not _channels_last(input):
        return None
    out = input if overwrite else torch.empty_like(input)
    pointwise.group_norm(
        NAMES[input.dtype],
        input.data_ptr(),
        out.data_ptr(),
        _address(weight),
        _address(bias),
        batch=batch,
        pixels=input[0, 0].numel(),
        channels=channels,
        groups=num_groups,
        eps=eps,
        silu=silu,
        threads=torch.get_num_threads(),
    )
    return out


def group_moments(input: Tensor, num_groups: int) -> Tensor | None:
    """``(N, groups, 2)``: the mean of each group, and the sum of squares around it, in float64.

    For group norms of maps that are in memory part by part; the channels lie side by side.
    """
    if input.ndim != 4 or not _computable(input) or not _channels_last(input):
        return None
    batch, channels = input.shape[:2]
    moments = torch.empty(batch, num_groups, 2, dtype=torch.float64)
    pointwise.group_moments(
        NAMES[input.dtype],
        input.data_ptr(),
        moments.data_ptr(),
        batch=batch,
        pixels=input[0, 0].numel(),
        channels=channels,
        groups=num_groups,
        threads=torch.get_num_threads(),
    )
    return moments


def scaled(input: Tensor, factors: Tensor, silu: bool = False) -> Tensor | None:
    """``(N, C, H, W)`` times and plus numbers ``(N, 2, C)`` in float32; then SiLU if asked for."""
    if input.ndim != 4 or not _computable(input) or not _channels_last(input):
        return None
    out, factors = torch.empty_like(input), factors.contiguous()
    pointwise.scale(
        NAMES[input.dtype],
        input.data_ptr(),
        out.data_ptr(),
        factors.data_ptr(),
        batch=len(input),
        pixels=input[0, 0].numel(),
        channels=input.shape[1],
        silu=silu,
        threads=torch.get_num_threads(),
    )
    return out


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    """Layer norm over the last axis of a contiguous tensor; arguments as in torch's function."""
    channels = input.shape[-1] if input.ndim else 0
    if list(normalized_shape) != [channels] or not _computable(input, weight, bias):
        return None
    if not input.is_contiguous() or not _fits(weight, channels) or not _fits(bias, channels):
        return None
    out = torch.empty_like(input)
    pointwise.layer_norm(
        NAMES[input.dtype],
        input.data_ptr(),
        out.data_ptr(),
        _address(weight),
        _address(bias),
        rows=input.numel() // channels,
        channels=channels,
        eps=eps,
        threads=torch.get_num_threads(),
    )
    return out


def geglu(projected: Tensor) -> Tensor | None:
    """``(..., 2C)`` to ``(..., C)``: the first half times the GELU of the second."""
    if not projected.ndim or projected.shape[-1] % 2 or not _computable(projected):
        return None
    if not projected.is_contiguous():
        return None
    channels = projected.shape[-1] // 2
    out = projected.new_empty(*projected.shape[:-1], channels)
    pointwise.geglu(
        NAMES[projected.dtype],
        projected.data_ptr(),
        out.data_ptr(),
        rows=out.numel() // channels,
        channels=channels,
        threads=torch.get_num_threads(),
    )
    return out


def _computable(input: Tensor, *others: Tensor | None) -> bool:
    """Whether there are kernels for the type, and all tensors are of it and can be read."""
    return (
        can_compute(NAMES.get(input.dtype, ""))
        and input.numel() > 0
        and ordinary(input, *others)
        and all(t is None or t.dtype is input.dtype for t in others)
    )


def _fits(t: Tensor | None, channels: int) -> bool:
    return t is None or (t.shape == (channels,) and t.is_contiguous())


def _channels_last(t: Tensor) -> bool:
    if t.ndim == 4:
        return t.is_contiguous(memory_format=torch.channels_last)
    return t.transpose(1, 2).is_contiguous()


def _address(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()
