"""Attention processors: how queries, keys and values of an `Attention` layer meet.

All share one path (`AttnProcessor2_0.__call__`) and differ in the kernel that ``attend`` calls. A
faster kernel overrides ``attend``; an adapter or a processor written for diffusers is any callable
of the shape `AttentionProcessor`. Both are plugged in with `Attention.set_processor`.

Precision: scores and softmax are at least float32 in every kernel, whatever the weights are. The
fused kernel of torch accumulates in float32 on its own; the plain one upcasts queries and keys.
This is what ``upcast_attention`` asks for, so that option needs no slower path of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from sfumato.models.attention import Attention

#: What a UNet with IP-Adapters hands to cross-attention: the text ``(N, S, C)``, and per adapter
#: the tokens of its pictures ``(N, pictures, tokens, C)``. See `sfumato.models.ip_attention`.
TextAndPictures = tuple[Tensor, list[Tensor]]


class AttentionProcessor(Protocol):
    """How an `Attention` layer computes; diffusers' processors have this shape too."""

    def __call__(self, attn: Any, hidden_states: Tensor, /, *args: Any, **kwargs: Any) -> Tensor:
        """Return a tensor shaped like ``hidden_states``."""
        ...


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax attention by torch's fused kernel.

    Args:
        q: queries ``(N, heads, L, D)``.
        k, v: keys and values ``(N, heads, S, D)``.
        bias: added to the scores; broadcasts to ``(N, heads, L, S)``.
        scale: factor on the scores, usually ``D ** -0.5``.

    Returns:
        ``(N, heads, L, D)``.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax attention written out, holding all scores at once; arguments as in `sdpa`."""
    return attention_weights(q, k, bias, scale).to(v.dtype) @ v


def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax of the scores ``(..., L, S)``, float32 at least; arguments as in `sdpa`."""
    precise = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(precise) * scale) @ k.to(precise).transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1)


class AttnProcessor2_0:
    """The default processor: torch's fused kernel."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        """The kernel; arguments as in `sdpa`."""
        return sdpa(q, k, v, bias, scale)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        x = attn.to_tokens(hidden_states)
        q, k, v = attn.project(x, encoder_hidden_states)
        bias = attn.score_bias(attention_mask, k.shape[2])
        heads = self.attend(q, k, v, bias, attn.scale)
        out = attn.to_out[1](attn.to_out[0](heads.transpose(1, 2).flatten(2)))
        return attn.from_tokens(out, hidden_states)


class AttnProcessor(AttnProcessor2_0):
    """Attention without the fused kernel, for comparison and for reading the scores."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        return plain_attention(q, k, v, bias, scale)


class StandIn(AttnProcessor2_0):
    """In the place of any processor for a while, of whose keywords it takes no notice."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **of_the_other: Any,
    ) -> Tensor:
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)


class IdentityAttention(StandIn):
    """Self-attention of each place to itself alone: what perturbed-attention guidance asks for."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        return v


class StoringAttention(StandIn):
    """Attention that keeps the weights of its last call, ``(N, heads, L, S)``."""

    weights: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        self.weights = attention_weights(q, k, bias, scale)
        return self.weights.to(v.dtype) @ v


_replacements: ContextVar[Mapping[Any, AttentionProcessor]] = ContextVar(
    "replacements", default=MappingProxyType({})
)


@contextmanager
def replaced_processors(processors: Mapping[Any, AttentionProcessor]) -> Iterator[None]:
    """Let layers compute with other processors for a while, in this thread alone.

    These are given the keywords that the layers' own processors accept.
    """
    token = _replacements.set({**_replacements.get(), **processors})
    try:
        yield
    finally:
        _replacements.reset(token)


def replacement_for(layer: Any) -> AttentionProcessor | None:
    """The processor that `replaced_processors` has given a layer in this thread."""
    return _replacements.get().get(layer)


class SlicedAttnProcessor(AttnProcessor2_0):
    """Attention over at most ``slice_size`` pairs of image and head at a time.

    Where torch has no kernel that works without holding the scores, they are ``slice_size * L * S``
    numbers at a time, however large the batch. Where it has one, slices cost no time either.
    """

    def __init__(self, slice_size: int) -> None:
        self.slice_size = slice_size

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        shape = q.shape
        if bias is not None:
            bias = bias.expand(*shape[:2], -1, -1).flatten(0, 1)
        q, k, v = (t.flatten(0, 1) for t in (q, k, v))
        parts = []
        for start in range(0, q.shape[0], self.slice_size):
            part = slice(start, start + self.slice_size)
            part_bias = None if bias is None else bias[part][None]
            parts.append(sdpa(q[part][None], k[part][None], v[part][None], part_bias, scale)[0])
        return torch.cat(parts).view(shape)
