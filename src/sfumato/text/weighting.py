"""What the weight of a word does to its embedding; programs differ, and so do their pictures.

`long_prompts` calls these on the text encoder's answer for one chunk: ``hidden`` is
``(length, width)``, ``weights`` is ``(length,)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

#: ``(hidden, weights, empty) -> hidden``; ``empty`` gives the embedding of a text without words.
Weighting: TypeAlias = Callable[[Tensor, Tensor, Callable[[], Tensor]], Tensor]


def restoring_mean(hidden: Tensor, weights: Tensor, empty: Callable[[], Tensor]) -> Tensor:
    """A1111's way: multiply, then scale the whole chunk so that its mean is what it was.

    Where that is impossible, because the new mean is next to nothing, it is left out.
    """
    if bool((weights == 1).all()):
        return hidden
    wide = hidden.float()
    weighted = wide * weights[:, None]
    ratio = wide.mean() / weighted.mean()
    restored = weighted * ratio
    usable = torch.isfinite(ratio) and torch.isfinite(restored).all()
    return (restored if usable else weighted).to(hidden.dtype)


def multiplying(hidden: Tensor, weights: Tensor, empty: Callable[[], Tensor]) -> Tensor:
    """A1111's way without restoring the mean ("No norm")."""
    return (hidden.float() * weights[:, None]).to(hidden.dtype)


def from_empty(hidden: Tensor, weights: Tensor, empty: Callable[[], Tensor]) -> Tensor:
    """ComfyUI's way: go from the empty prompt's embedding at the same place, so much of the way."""
    if bool((weights == 1).all()):
        return hidden
    start = empty().float()
    moved = start + (hidden.float() - start) * weights[:, None]
    # At weight 1 the embedding stays as it is, bit by bit.
    return torch.where(weights[:, None] == 1, hidden, moved.to(hidden.dtype))
