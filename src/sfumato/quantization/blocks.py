"""Weights in blocks of 32 with a scale of their own, as GGUF files have them: small, not faster.

The input stays as it is; the weight becomes plain numbers for the time of a product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from sfumato.checkpoints.gguf.blocks import QUANTISERS, quantise
from sfumato.checkpoints.gguf.tensors import dequantised
from sfumato.checkpoints.gguf.types import BY_NAME
from sfumato.errors import CheckpointError
from sfumato.quantization import kernels
from sfumato.quantization.tensor import QuantizedTensor

#: Numbers that are quantised at a time: little enough for the caches.
_PIECE = 2**18


class BlockTensor(QuantizedTensor):
    """A weight as blocks of a type of GGUF.

    Attributes:
        raw: the blocks' bytes, in the order of the weight's numbers.
        kind: the type's name, one of `sfumato.checkpoints.gguf.blocks.DEQUANTISERS`.
    """

    part_names = ("raw",)

    raw: Tensor
    kind: str

    def __init__(
        self, shape: Any, dtype: torch.dtype, device: torch.device, *, raw: Tensor, kind: str
    ) -> None:
        self.raw, self.kind = raw, kind

    @classmethod
    def quantise(cls, weight: Tensor, dtype: torch.dtype, kind: str) -> Self:
        """Quantise a weight whose number of elements is a multiple of 32.

        Args:
            weight: of any shape and precision.
            dtype: that the result claims to have.
            kind: one of `QUANTISERS`.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """
        assert kind in QUANTISERS
        block = BY_NAME[kind]
        rows = weight.detach().contiguous().view(-1, block.count)
        raw = torch.empty(len(rows), block.size, dtype=torch.uint8)
        step = _PIECE // block.count
        for start in range(0, len(rows), step):
            piece = rows[start : start + step].float()
            if not torch.isfinite(piece).all():
                raise CheckpointError("A weight to quantise holds NaN or infinity.")
            raw[start : start + step] = torch.from_numpy(quantise(piece.numpy(), kind))
        return cls(tuple(weight.shape), dtype, raw.device, raw=raw.view(-1), kind=kind)

    def with_inner(
        self, inner: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> Self:
        return type(self)(self.shape, dtype, device, **inner, kind=self.kind)

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return list(self.part_names), (self.dtype, self.kind)

    @classmethod
    def __tensor_unflatten__(
        cls, inner: Mapping[str, Tensor], known: Any, size: Any, stride: Any
    ) -> Self:
        return cls(size, known[0], inner["raw"].device, raw=inner["raw"], kind=known[1])

    def plain(self, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        if kernels.can_expand(self.raw, self.kind, dtype):
            return kernels.expand(self.raw, self.kind, dtype).view(self.shape)
        return dequantised(self.raw.cpu(), self.kind, self.shape, dtype).to(self.device)
