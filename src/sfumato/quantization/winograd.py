"""Weights of 3x3 convolutions in 8 bits, transformed for Winograd's method.

The transformed weight has 16 numbers for each 9, and each product of the method needs 2.25 times
fewer multiplications. The code in C transforms the input and quantises it tile by tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.errors import CheckpointError
from sfumato.quantization import kernels
from sfumato.quantization.int8 import LANES, PANEL, one_number, pair_of_numbers
from sfumato.quantization.tensor import QuantizedTensor

#: Rows and columns of a transformed kernel.
SIZE = 4
PLACES = SIZE * SIZE

#: From three taps to four numbers, and back by least squares.
_TO = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_BACK = torch.linalg.pinv(_TO)


class WinogradTensor(QuantizedTensor):
    """A weight (outputs, inputs, 3, 3) as integers with a scale per output and place.

    Attributes:
        packed: the integers in the order that the kernels read (see `pack`).
        scales: ``(16, outputs)``, float32.
        offsets: the scales times the sums of the integers, float32.
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
        """Transform and quantise a weight; arguments and errors as of `Int8Tensor.quantise`."""
        outputs, inputs = weight.shape[:2]
        integers = torch.empty(outputs, PLACES, inputs, dtype=torch.int8)
        scales = torch.empty(outputs, PLACES)
        for start in range(0, outputs, PANEL):
            taps = weight[start : start + PANEL].detach().float()
            rows = torch.einsum("ai,bj,ocij->oabc", _TO, _TO, taps).flatten(1, 2)
            scale = rows.abs().amax(2) / 127
            if not torch.isfinite(scale).all():
                raise CheckpointError("A weight to quantise holds NaN or infinity.")
            scales[start : start + PANEL] = scale
            rows = rows * torch.where(scale > 0, 1 / scale, 0)[..., None]
            integers[start : start + PANEL] = rows.round_().to(torch.int8)
        return cls.of_integers(integers, scales, dtype)

    @classmethod
    def of_integers(cls, integers: Tensor, scales: Tensor, dtype: torch.dtype) -> Self:
        """From integers (outputs, 16, inputs) and their scales (outputs, 16)."""
        sums = integers.sum(2, dtype=torch.int32)
        return cls(
            (len(integers), integers.shape[2], 3, 3),
            dtype,
            integers.device,
            packed=pack(integers),
            scales=scales.T.float().contiguous(),
            offsets=(scales * sums).T.float().contiguous(),
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
        """The integers, ``(outputs, 16, inputs)``."""
        return unpack(self.packed, self.shape[0], self.shape[1])

    def plain(self, dtype: torch.dtype | None = None) -> Tensor:
        integers, scales = self.integers(), self.scales.T[..., None]
        plain = torch.empty(self.shape, dtype=dtype or self.dtype, device=integers.device)
        back = _BACK.to(integers.device)
        for start in range(0, len(self), PANEL):
            rows = integers[start : start + PANEL] * scales[start : start + PANEL]
            taps = torch.einsum("ia,jb,oabc->ocij", back, back, rows.unflatten(1, (SIZE, SIZE)))
            plain[start : start + PANEL] = taps
        return plain

    def convolve(
        self, x: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        edge = pair_of_numbers(padding)
        usual = one_number(stride) == one_number(dilation) == groups == 1
        if not usual or edge is None or not kernels.can_compute(x) or min(x.shape[2:]) < 3:
            return super().convolve(x, bias, stride, padding, dilation, groups)
        packed = self.packed, self.scales, self.offsets
        return kernels.winograd(x, *packed, bias, self.shape[0], edge)


def pack(integers: Tensor) -> Tensor:
    """Integers (outputs, 16, inputs) as the kernels read them.

    Panels of 64 outputs, in each the sixteen places, of each place a matrix as `int8.pack` has it,
    but filled up to a multiple of 16 inputs.
    """
    panels = []
    for rows in F.pad(integers, (0, -integers.shape[2] % LANES)).split(PANEL):
        filled = F.pad(rows, (0, 0, 0, 0, 0, -len(rows) % LANES)).contiguous().view(torch.int32)
        panels.append(filled.permute(1, 2, 0).flatten())
    return torch.cat(panels).view(torch.uint8)


def unpack(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """The integers that `pack` was given."""
    words = -(-inputs // LANES) * LANES // 4
    widths = [min(PANEL, outputs - start) for start in range(0, outputs, PANEL)]
    sizes = [-(-width // LANES) * LANES * words * PLACES for width in widths]
    panels = packed.view(torch.int32).split(sizes)
    rows = torch.cat([panel.view(PLACES, words, -1).permute(2, 0, 1) for panel in panels])
    return rows.contiguous().view(torch.int8)[:outputs, :, :inputs]
