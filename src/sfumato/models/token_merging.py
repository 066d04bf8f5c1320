"""Token merging: self-attention over fewer tokens, where neighbours say nearly the same.

Bolya and Hoffman, "Token Merging for Fast Stable Diffusion" (arXiv:2303.17604). One token of every
2x2 cell is a destination; of all others the share that is most like some destination is averaged
into it, and after attention takes that destination's result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.models.processors import AttentionProcessor

#: Side of a cell with one destination.
CELL = 2


@dataclass(frozen=True)
class Merging:
    """Which of ``L`` tokens are merged into which, per sample.

    Attributes:
        destinations, sources: numbers of the tokens, ``(D,)`` and ``(L - D,)``.
        kept: which sources stay by themselves, ``(N, K, 1)``.
        merged: which do not, ``(N, M, 1)``.
        targets: number of the destination of each of those, ``(N, M, 1)``.
    """

    destinations: Tensor
    sources: Tensor
    kept: Tensor
    merged: Tensor
    targets: Tensor

    def merge(self, tokens: Tensor) -> Tensor:
        """Tokens ``(N, L, C)`` to ``(N, K + D, C)``."""
        n, _, c = tokens.shape
        sources, destinations = tokens[:, self.sources], tokens[:, self.destinations]
        kept = sources.gather(1, self.kept.expand(n, -1, c))
        moved = sources.gather(1, self.merged.expand(n, -1, c))
        into = self.targets.expand(n, -1, c)
        destinations = destinations.scatter_reduce(1, into, moved, "mean", include_self=True)
        return torch.cat([kept, destinations], dim=1)

    def unmerge(self, tokens: Tensor) -> Tensor:
        """Results ``(N, K + D, C)`` for all ``L`` tokens."""
        n, _, c = tokens.shape
        kept, destinations = tokens.split([self.kept.shape[1], len(self.destinations)], dim=1)
        sources = tokens.new_empty(n, len(self.sources), c)
        sources.scatter_(1, self.kept.expand(n, -1, c), kept)
        copies = destinations.gather(1, self.targets.expand(n, -1, c))
        sources.scatter_(1, self.merged.expand(n, -1, c), copies)
        result = tokens.new_empty(n, len(self.sources) + len(self.destinations), c)
        result[:, self.sources] = sources
        result[:, self.destinations] = destinations
        return result


def match(tokens: Tensor, height: int, width: int, ratio: float, choice: Tensor) -> Merging:
    """Decide which tokens to merge.

    Args:
        tokens: of one feature map, row by row, ``(N, height * width, C)``.
        height, width: of the map.
        ratio: share of all tokens to merge away, below 0.75.
        choice: which corner of each cell is the destination, 0..3, one per whole cell.
    """
    destinations = _corners(height, width, choice)
    chosen = torch.zeros(height * width, dtype=torch.bool, device=tokens.device)
    chosen[destinations] = True
    sources = (~chosen).nonzero().flatten()
    count = min(len(sources), int(ratio * height * width))
    unit = tokens / tokens.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    likeness, target = (unit[:, sources] @ unit[:, destinations].transpose(1, 2)).max(dim=-1)
    order = likeness.argsort(dim=-1, descending=True, stable=True)
    merged, kept = order[:, :count], order[:, count:]
    return Merging(
        destinations=destinations,
        sources=sources,
        kept=kept.unsqueeze(-1),
        merged=merged.unsqueeze(-1),
        targets=target.gather(1, merged).unsqueeze(-1),
    )


def _corners(height: int, width: int, choice: Tensor) -> Tensor:
    """Numbers of the destinations: one in every whole cell."""
    rows, columns = height // CELL, width // CELL
    choice = choice[: rows * columns].view(rows, columns)
    row = torch.arange(rows, device=choice.device)[:, None] * CELL + choice // CELL
    column = torch.arange(columns, device=choice.device)[None] * CELL + choice % CELL
    return (row * width + column).flatten()


class MergedAttention:
    """A self-attention layer's own processor, over merged tokens.

    Args:
        inner: the processor.
        size: height and width of the layer's feature map.
        ratio: share of the tokens to merge away.
        draw: number of cells to the corners of their destinations.
    """

    def __init__(
        self,
        inner: AttentionProcessor,
        size: tuple[int, int],
        ratio: float,
        draw: Callable[[int], Tensor],
    ) -> None:
        self.inner, self.size, self.ratio, self.draw = inner, size, ratio, draw

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **keywords: Any,
    ) -> Tensor:
        height, width = self.size
        fits = hidden_states.ndim == 3 and hidden_states.shape[1] == height * width
        fits = fits and self.ratio * height * width >= 1
        if not fits or attention_mask is not None or encoder_hidden_states is not None:
            return self.inner(
                attn, hidden_states, encoder_hidden_states, attention_mask, **keywords
            )
        cells = (height // CELL) * (width // CELL)
        choice = self.draw(cells).to(hidden_states.device)
        merging = match(hidden_states, height, width, self.ratio, choice)
        return merging.unmerge(self.inner(attn, merging.merge(hidden_states), **keywords))
