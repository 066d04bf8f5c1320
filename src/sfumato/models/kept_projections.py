"""Keys and values of a text that does not change, computed once per drawing and not in every step.

They are kept for one call, in its own thread, and only for layers whose keys depend on nothing but
the text: a layer with adapters, whose strengths may change from step to step, computes its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sfumato.models.attention import Attention


@dataclass(frozen=True, eq=False)
class _Kept:
    """What was computed, and what it was computed from.

    ``context`` is held so that its identity cannot pass to another tensor.
    """

    context: Tensor
    versions: tuple[int, ...]
    keys: Tensor
    values: Tensor


_kept: ContextVar[dict[Attention, _Kept] | None] = ContextVar("kept_projections", default=None)


@contextmanager
def keeping_projections() -> Iterator[None]:
    """Let cross-attention layers keep keys and values for a while, in this thread alone."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def known_projections(layer: Attention, context: Tensor) -> tuple[Tensor, Tensor] | None:
    """Keys and values that a layer has computed of this very context, unchanged since."""
    found = (_kept.get() or {}).get(layer)
    if found is None or found.context is not context or found.versions != _versions(layer, context):
        return None
    return found.keys, found.values


def keep_projections(layer: Attention, context: Tensor, keys: Tensor, values: Tensor) -> None:
    """Keep what a layer has computed of a context, where that may be used again."""
    kept = _kept.get()
    if kept is None or torch.is_grad_enabled() or context.is_inference():
        return  # inference tensors do not tell whether they have changed
    if not _depends_on_text_alone(layer):
        return
    kept[layer] = _Kept(context, _versions(layer, context), keys, values)


def _depends_on_text_alone(layer: Attention) -> bool:
    parts = (layer.to_k, layer.to_v) if layer.to_kv is None else (layer.to_kv,)
    plain = layer.added_kv_proj_dim is None and layer.norm_cross is None
    return plain and all(type(part) is nn.Linear for part in parts)


def _versions(layer: Attention, context: Tensor) -> tuple[int, ...]:
    """Counters that change with the numbers of the context and of the weights."""
    parts = (layer.to_k, layer.to_v) if layer.to_kv is None else (layer.to_kv,)
    weights = [part.weight for part in parts if part is not None]
    return context._version, *(weight._version for weight in weights), *map(id, weights)
