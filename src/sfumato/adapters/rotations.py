"""Orthogonal finetuning: adapters that rotate a layer's channels in blocks (OFT and BOFT).

Skew-symmetric matrices become rotations by Cayley's map (arXiv:2306.07280, section 3.2). kohya's
scripts and LyCORIS rotate the outputs and write the map as ``(I + Q) (I - Q)^-1``; PEFT rotates
the inputs and writes ``(I - Q) (I + Q)^-1``, or the first terms of its series.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.adapters.families import LayerAdapter, like
from sfumato.errors import AdapterError


@dataclass(frozen=True, eq=False, kw_only=True)
class OFT(LayerAdapter):
    """Rotations of the outputs in blocks, as kohya's scripts and LyCORIS ("diag-oft") have them.

    Attributes:
        blocks: ``(number, size, size)``, of which the antisymmetric part counts.
        rescale: a factor per output channel after the rotation, or None.
        constraint: per output channel; the norm of all blocks together is kept below
            ``constraint * out``. 0 for none. The files call it alpha.
        rotated: the blocks are rotations already ("oft_diag" of old LyCORIS).
    """

    family: ClassVar[str] = "oft"
    blocks: Tensor
    rescale: Tensor | None = None
    constraint: float = 0.0
    rotated: bool = False

    def weight_delta(self, weight: Tensor) -> Tensor:
        blocks = like(self.blocks, weight)
        turn = blocks if self.rotated else _constrained(blocks, self.constraint * weight.shape[0])
        rows = weight.reshape(*blocks.shape[:2], -1)
        turned = (turn.mT @ rows).reshape(weight.shape)
        return _rescaled(turned, self.rescale) - weight

    def check(self, shape: torch.Size) -> None:
        _check_blocks(self.blocks, 3, shape)
        _check_rescale(self.rescale, shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class BOFT(LayerAdapter):
    """Butterfly-shaped products of block rotations of the outputs (arXiv:2311.06243), of LyCORIS.

    Attributes:
        blocks: ``(stages, number, size, size)``; stage ``i`` mixes channels ``2^i * size / 2``
            apart.
        rescale, constraint: as in `OFT`.
    """

    family: ClassVar[str] = "boft"
    blocks: Tensor
    rescale: Tensor | None = None
    constraint: float = 0.0

    def weight_delta(self, weight: Tensor) -> Tensor:
        turns = _constrained(like(self.blocks, weight), self.constraint * weight.shape[0])
        number, size = self.blocks.shape[1], self.blocks.shape[2]
        x = weight.flatten(1)
        for stage, turn in enumerate(turns):
            apart = 2**stage * size // 2
            # Channels (group, which of two, offset) pair up offset by offset.
            x = x.unflatten(0, (-1, 2, apart)).transpose(1, 2).reshape(number, size, -1)
            x = (turn @ x).reshape(-1, apart, 2, x.shape[-1]).transpose(1, 2).flatten(0, 2)
        return _rescaled(x.reshape(weight.shape), self.rescale) - weight

    def check(self, shape: torch.Size) -> None:
        _check_blocks(self.blocks, 4, shape)
        _check_rescale(self.rescale, shape)
        stages, _, size, _ = self.blocks.shape
        if size % 2 or shape[0] % (2**stages * size // 2):
            raise AdapterError(
                f"{stages} butterfly stages of blocks of {size} do not fit {shape[0]} outputs"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class InputOFT(LayerAdapter):
    """Rotations of the inputs in blocks, as PEFT's OFT has them.

    Attributes:
        vectors: ``(blocks, size * (size - 1) / 2)``, the upper triangles of skew-symmetric
            matrices; one row serves all blocks when ``shared``.
        size: of a block.
        terms: of the series that PEFT takes for Cayley's map; 0 for the map itself.
    """

    family: ClassVar[str] = "oft"
    vectors: Tensor
    size: int
    terms: int = 5
    shared: bool = False

    def weight_delta(self, weight: Tensor) -> Tensor:
        vectors = like(self.vectors, weight)
        rows, columns = torch.triu_indices(self.size, self.size, 1, device=weight.device)
        q = vectors.new_zeros(len(vectors), self.size, self.size)
        q[:, rows, columns] = vectors
        q = q - q.mT
        turn = _series(q, self.terms) if self.terms else _cayley(-q)
        inputs = weight.reshape(weight.shape[0], -1, self.size)
        turned = torch.einsum("obc,bkc->obk", inputs, turn.expand(inputs.shape[1], -1, -1))
        return turned.reshape(weight.shape) - weight

    def check(self, shape: torch.Size) -> None:
        columns = shape[1:].numel()
        number = 1 if self.shared else columns // max(self.size, 1)
        wanted = [number, self.size * (self.size - 1) // 2]
        if self.size < 2 or columns % self.size or list(self.vectors.shape) != wanted:
            raise AdapterError(
                f"oft_R of the shape {list(self.vectors.shape)} does not fit {columns} inputs"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class InputBOFT(LayerAdapter):
    """Butterfly rotations of the inputs and factors on the outputs, as PEFT's BOFT has them.

    Attributes:
        blocks: ``(stages, number, size, size)``, of which half the antisymmetric part counts.
        factors: one per output channel, in any shape, or None.
    """

    family: ClassVar[str] = "boft"
    blocks: Tensor
    factors: Tensor | None = None

    def weight_delta(self, weight: Tensor) -> Tensor:
        blocks = like(self.blocks, weight)
        turns = _cayley((blocks.mT - blocks) / 2)
        _, number, size, _ = blocks.shape
        x = weight.flatten(1).T
        for stage, turn in enumerate(turns):
            half, apart = size // 2, 2**stage
            x = turn @ _interleaved(x, half, apart).reshape(number, size, -1)
            x = _sorted(x.flatten(0, 1), half, apart)
        return _rescaled(x.T.reshape(weight.shape), self.factors) - weight

    def check(self, shape: torch.Size) -> None:
        inputs = torch.Size([shape[1:].numel()])
        _check_blocks(self.blocks, 4, inputs)
        _check_rescale(self.factors, shape)
        stages, _, size, _ = self.blocks.shape
        if stages > 1 and (size % 2 or inputs[0] % (2 ** (stages - 1) * size)):
            raise AdapterError(
                f"{stages} butterfly stages of blocks of {size} do not fit {inputs[0]} inputs"
            )


def _sorted(x: Tensor, half: int, pairs: int) -> Tensor:
    """In each group of ``2 * pairs`` half-blocks of rows, the even ones before the odd ones."""
    if pairs == 1:
        return x
    return x.unflatten(0, (-1, pairs, 2, half)).transpose(1, 2).flatten(0, 3)


def _interleaved(x: Tensor, half: int, pairs: int) -> Tensor:
    """The inverse of `_sorted`."""
    if pairs == 1:
        return x
    return x.unflatten(0, (-1, 2, pairs, half)).transpose(1, 2).flatten(0, 3)


def _cayley(q: Tensor) -> Tensor:
    """``(I + Q) (I - Q)^-1`` of skew-symmetric matrices: rotations."""
    eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    return torch.linalg.solve(eye - q, eye + q, left=False)


def _constrained(blocks: Tensor, limit: float) -> Tensor:
    """Rotations of blocks whose antisymmetric part is first scaled down to the norm ``limit``."""
    q = blocks - blocks.mT
    norm = torch.linalg.vector_norm(q) + 1e-8
    return _cayley(q * (limit / norm) if 0 < limit < norm else q)


def _series(q: Tensor, terms: int) -> Tensor:
    """``I + 2 Q + 2 Q^2 + ...`` as PEFT cuts it off: the last power is not doubled.

    Below four terms PEFT counts otherwise: two end with ``2 Q``, three are the same as four.
    """
    total = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device).expand_as(q)
    if terms < 3:
        return total + 2 * q if terms == 2 else total
    highest = max(terms, 4) - 1
    power = q
    for n in range(1, highest + 1):
        total = total + (power if n == highest else 2 * power)
        power = power @ q
    return total


def _rescaled(weight: Tensor, factors: Tensor | None) -> Tensor:
    if factors is None:
        return weight
    return weight * like(factors, weight).reshape(-1, *[1] * (weight.ndim - 1))


def _check_blocks(blocks: Tensor, axes: int, shape: torch.Size) -> None:
    square = blocks.ndim == axes and blocks.shape[-1] == blocks.shape[-2]
    if not square or blocks.shape[-3] * blocks.shape[-2] != shape[0]:
        raise AdapterError(
            f"rotations of the shape {list(blocks.shape)} do not fit {shape[0]} channels"
        )


def _check_rescale(factors: Tensor | None, shape: torch.Size) -> None:
    if factors is not None and factors.numel() != shape[0]:
        raise AdapterError(f"{factors.numel()} factors do not fit {shape[0]} outputs")
