"""What the weight of a word does to its embedding; programs differ, and so do their pictures.

`long_prompts` calls these on the text encoder's answer for one chunk: ``hidden`` is
``(length, width)``, ``weights`` is ``(length,)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from sfumato.array_kinds import as_float32, in_type_of, namespace

#: ``(hidden, weights, empty) -> hidden``; ``empty`` gives the embedding of a text without words.
Weighting: TypeAlias = Callable[[Any, Any, Callable[[], Any]], Any]


def restoring_mean(hidden: Any, weights: Any, empty: Callable[[], Any]) -> Any:
    """A1111's way: multiply, then scale the whole chunk so that its mean is what it was.

    Where that is impossible, because the new mean is next to nothing, it is left out.
    """
    if bool((weights == 1).all()):
        return hidden
    wide = as_float32(hidden)
    weighted = wide * weights[:, None]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        restored = weighted * (wide.mean() / weighted.mean())
    usable = bool(namespace(restored).isfinite(restored).all())
    return in_type_of(restored if usable else weighted, hidden)


def multiplying(hidden: Any, weights: Any, empty: Callable[[], Any]) -> Any:
    """A1111's way without restoring the mean ("No norm")."""
    return in_type_of(as_float32(hidden) * weights[:, None], hidden)


def from_empty(hidden: Any, weights: Any, empty: Callable[[], Any]) -> Any:
    """ComfyUI's way: go from the empty prompt's embedding at the same place, so much of the way."""
    if bool((weights == 1).all()):
        return hidden
    start = as_float32(empty())
    moved = start + (as_float32(hidden) - start) * weights[:, None]
    # At weight 1 the embedding stays as it is, bit by bit.
    return namespace(hidden).where(weights[:, None] == 1, hidden, in_type_of(moved, hidden))
