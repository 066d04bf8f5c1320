"""8-bit integers on both sides: weights with a scale per output, the input quantised on the way.

The input becomes unsigned integers ``q`` with ``x ~ scale * q + low``: a scale and a low for each
row of a linear layer, for each picture of a convolution. Pictures of a batch never share them, so
a picture does not depend on its neighbours. Sums of products are exact; see `kernels` for the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.errors import CheckpointError
from sfumato.quantization import kernels
from sfumato.quantization.tensor import QuantizedTensor, plain_conv2d, plain_linear

#: Outputs whose weights lie together, and inputs that are multiplied by one instruction's lane.
PANEL, WORD, LANES = 64, 4, 16
#: Numbers that are widened at a time, where there are no kernels.
AT_A_TIME = 2**20
#: Pixels of a map from which 3x3 convolutions gain by transforming their weights in each call.
LEAST_PIXELS = 64


class Int8Tensor(QuantizedTensor):
    """A weight as signed 8-bit integers with a scale per output.

    Attributes:
        packed: the integers in the order that the kernels read (see `pack`).
        scales: of each output, float32.
        offsets: of each output, the scale times the sum of its integers, float32.
    """

    part_names = ("packed", "scales", "offsets")

    packed: Tensor
    scales: Tensor
    offsets: Tensor

    def __init__(
        self,
        shape: Any,
        dtype: torch.dtype,
        device: torch.device,
        *,
        packed: Tensor,
        scales: Tensor,
        offsets: Tensor,
    ) -> None:
        self.packed, self.scales, self.offsets = packed, scales, offsets

    @classmethod
    def quantise(cls, weight: Tensor, dtype: torch.dtype) -> Self:
        """Quantise the weight of a linear layer or a convolution.

        Args:
            weight: ``(outputs, inputs)`` or ``(outputs, inputs, height, width)``, of any precision.
            dtype: that the result claims to have.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """
        outputs = len(weight)
        integers = torch.empty(outputs, weight[0].numel(), dtype=torch.int8)
        scales = torch.empty(outputs)
        for start in range(0, outputs, PANEL):  # little at a time: it stays in the caches
            rows = in_kernel_order(weight[start : start + PANEL].detach()).float()
            scale = rows.abs().amax(1) / 127
            if not torch.isfinite(scale).all():
                raise CheckpointError("A weight to quantise holds NaN or infinity.")
            scales[start : start + PANEL] = scale
            rows = rows * torch.where(scale > 0, 1 / scale, 0)[:, None]
            integers[start : start + PANEL] = rows.round_().to(torch.int8)
        return cls.of_integers(integers, scales, tuple(weight.shape), dtype)

    @classmethod
    def of_integers(
        cls, integers: Tensor, scales: Tensor, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Self:
        """From integers in the order of `in_kernel_order` and the scales of the outputs."""
        sums = integers.sum(1, dtype=torch.int32)
        scales = scales.float().contiguous()
        return cls(
            shape,
            dtype,
            integers.device,
            packed=pack(integers),
            scales=scales,
            offsets=scales * sums,
        )

    def with_inner(
        self, inner: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> Self:
        return type(self)(self.shape, dtype, device, **inner)

    @classmethod
    def __tensor_unflatten__(
        cls, inner: Mapping[str, Tensor], dtype: torch.dtype, size: Any, stride: Any
    ) -> Self:
        return cls(size, dtype, inner["packed"].device, **inner)

    def integers(self) -> Tensor:
        """The integers, ``(outputs, inputs)`` in the order of `in_kernel_order`."""
        return unpack(self.packed, len(self), self.shape[1:].numel())

    def plain(self, dtype: torch.dtype | None = None) -> Tensor:
        integers, scales = self.integers(), self.scales[:, None]
        plain = torch.empty(self.shape, dtype=dtype or self.dtype, device=integers.device)
        for start in range(0, len(self), PANEL):
            rows = integers[start : start + PANEL] * scales[start : start + PANEL]
            part = plain[start : start + PANEL]
            part.copy_(from_kernel_order(rows, tuple(part.shape)))
        return plain

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if kernels.can_compute(x):
            return kernels.linear(x, self.packed, self.scales, self.offsets, bias)
        return plain_linear(rounded_rows(x), self.plain(x.dtype).flatten(1), bias)

    def convolve(
        self, x: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        step, edge = one_number(stride), pair_of_numbers(padding)
        if one_number(dilation) != 1 or groups != 1 or step is None or edge is None:
            return super().convolve(x, bias, stride, padding, dilation, groups)
        if self.shape[2:] == (1, 1) and step == 1 and edge == (0, 0):
            return self.linear(x.movedim(1, -1), bias).movedim(-1, 1)
        if kernels.can_compute(x):
            packed = self.packed, self.scales, self.offsets
            if step == 1 and self.shape[2:] == (3, 3) and self._transform_pays(x):
                return kernels.winograd(x, *packed, bias, self.shape[0], edge, direct=True)
            return kernels.convolve(x, *packed, bias, tuple(self.shape), step, edge)
        return plain_conv2d(rounded_pictures(x), self.plain(x.dtype), bias, step, edge)

    def _transform_pays(self, x: Tensor) -> bool:
        """Whether to transform the weight for Winograd's method in each call.

        The batch has no say, so that a picture does not depend on its neighbours.
        """
        height, width = x.shape[2:]
        enough = height * width >= LEAST_PIXELS and min(height, width) >= 3
        return enough and self.shape[1] % LANES == 0


def one_number(value: Any) -> int | None:
    """The number that stands for both axes; None where they differ."""
    if isinstance(value, int):
        return value
    return value[0] if len(set(value)) == 1 else None


def pair_of_numbers(value: Any) -> tuple[int, int] | None:
    """Two numbers from a convolution's padding; None for padding in words."""
    if isinstance(value, str):
        return None
    return (value, value) if isinstance(value, int) else tuple(value)


# The order of weights


def in_kernel_order(weight: Tensor) -> Tensor:
    """``(outputs, inputs)``; of convolutions the inputs of the first tap, of the second, ..."""
    return weight.movedim(1, -1).flatten(1) if weight.ndim > 2 else weight


def from_kernel_order(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The weight of a shape that `in_kernel_order` made rows of."""
    if len(shape) == 2:
        return rows
    return rows.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()


def pack(rows: Tensor) -> Tensor:
    """Integers as the kernels read them, with zeros in the gaps.

    64 outputs make a panel, the last one of a multiple of 16. In a panel come four inputs of its
    first output, the same four of its second, and so on; then the next four inputs.
    """
    outputs, inputs = rows.shape
    words = -(-inputs // WORD)
    filled = F.pad(rows, (0, words * WORD - inputs, 0, -outputs % LANES))
    as_words = filled.contiguous().view(torch.int32)
    panels = [panel.T.flatten() for panel in as_words.split(PANEL)]
    return torch.cat(panels).view(torch.uint8)


def unpack(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """The integers that `pack` was given."""
    words = -(-inputs // WORD)
    widths = [min(PANEL, outputs - start) for start in range(0, outputs, PANEL)]
    sizes = [-(-width // LANES) * LANES * words for width in widths]
    panels = packed.view(torch.int32).split(sizes)
    rows = torch.cat([panel.view(words, -1).T for panel in panels]).contiguous()
    return rows.view(torch.int8)[:outputs, :inputs]


# What the kernels do with the input, in torch: the reference, and the way without kernels


def rounded_rows(x: Tensor) -> Tensor:
    """``x`` with each row's numbers at one of 256 values."""
    rows = x.reshape(-1, x.shape[-1])
    rounded = torch.empty_like(rows)
    step = max(1, AT_A_TIME // x.shape[-1])
    for part, result in zip(rows.split(step), rounded.split(step), strict=True):
        wide = part.float()
        low, high = wide.aminmax(dim=-1, keepdim=True)
        scale = (high - low) / 255
        inverse = torch.where(scale > 0, 1 / scale, 0)
        result.copy_((wide * inverse - low * inverse).round() * scale + low)
    return rounded.view(x.shape)


def rounded_pictures(x: Tensor) -> Tensor:
    """``x`` with each picture's numbers at one of 256 values, of which one is zero."""
    low = x.amin(dim=(1, 2, 3), keepdim=True).float().clamp(max=0)
    high = x.amax(dim=(1, 2, 3), keepdim=True).float().clamp(min=0)
    scale = (high - low) / 255
    inverse = torch.where(scale > 0, 1 / scale, 0)
    zero = (-low * inverse).round()
    rounded = torch.empty_like(x)
    step = max(1, AT_A_TIME // (x[:, :, 0].numel() or 1))
    for part, result in zip(x.split(step, dim=2), rounded.split(step, dim=2), strict=True):
        integers = (part.float() * inverse + zero).round().clamp(0, 255)
        result.copy_((integers - zero) * scale)
    return rounded
