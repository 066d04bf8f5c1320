"""The transformer that lets image features look at each other and at the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sfumato.models.attention import Attention
from sfumato.models.conventions import TRANSFORMER_EPS
from sfumato.models.fused import geglu
from sfumato.models.layers import Recomputable
from sfumato.models.processors import TextAndPictures


@dataclass(frozen=True)
class Context:
    """What the attention layers of a UNet look at, besides the image features.

    Attributes:
        encoder_hidden_states: text tokens ``(N, S, C)``; with IP-Adapters, pictures beside them.
        attention_mask: bias ``(N, 1, L)`` on the scores of self-attention.
        encoder_attention_mask: bias ``(N, 1, S)`` on the scores of cross-attention.
        attention_kwargs: passed on to the attention processors.
    """

    encoder_hidden_states: Tensor | TextAndPictures | None = None
    attention_mask: Tensor | None = None
    encoder_attention_mask: Tensor | None = None
    attention_kwargs: Mapping[str, Any] = field(default_factory=dict)


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another one (Shazeer, arXiv:2002.05202)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return geglu(self.proj(x))


class FeedForward(nn.Module):
    """Token-wise GEGLU to four times the width, and back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # The dropout in the middle is never active; it keeps the numbering of the weights.
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Dropout(0.0), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(Recomputable):
    """Self-attention, cross-attention and feed-forward, each normalised before and added after.

    Args:
        dim: channels of the tokens.
        heads, dim_head: of both attentions.
        cross_attention_dim: channels of the context.
        only_cross_attention: the first attention looks at the context too.
        upcast_attention: see `Attention`.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_head: int,
        cross_attention_dim: int,
        only_cross_attention: bool = False,
        upcast_attention: bool = False,
    ) -> None:
        super().__init__()
        self.only_cross_attention = only_cross_attention
        shape: dict[str, Any] = {
            "heads": heads,
            "dim_head": dim_head,
            "upcast_attention": upcast_attention,
        }
        first_context = cross_attention_dim if only_cross_attention else None
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, first_context, **shape)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, cross_attention_dim, **shape)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def compute(self, x: Tensor, context: Context) -> Tensor:
        """``x`` is ``(N, L, dim)``."""
        text, kwargs = context.encoder_hidden_states, context.attention_kwargs
        first = None
        if self.only_cross_attention:  # pictures are for the second attention
            first = text[0] if isinstance(text, tuple) else text
        x = x + self.attn1(self.norm1(x), first, context.attention_mask, **kwargs)
        x = x + self.attn2(self.norm2(x), text, context.encoder_attention_mask, **kwargs)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nn.Module):
    """Transformer blocks over the pixels of a feature map, beside a shortcut.

    Args:
        channels: of input and output.
        heads: attention heads; each is ``channels // heads`` wide.
        depth: number of blocks.
        cross_attention_dim: channels of the context.
        norm_num_groups: groups of the input's normalisation.
        use_linear_projection: project tokens with linear layers (SD 2.x) rather than the feature
            map with 1x1 convolutions (SD 1.x).
        only_cross_attention, upcast_attention: see `BasicTransformerBlock`.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        depth: int,
        cross_attention_dim: int,
        norm_num_groups: int,
        use_linear_projection: bool = False,
        only_cross_attention: bool = False,
        upcast_attention: bool = False,
    ) -> None:
        super().__init__()
        dim_head = channels // heads
        dim = heads * dim_head
        self.use_linear_projection = use_linear_projection
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=TRANSFORMER_EPS)
        self.proj_in = _projection(channels, dim, use_linear_projection)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                dim,
                heads=heads,
                dim_head=dim_head,
                cross_attention_dim=cross_attention_dim,
                only_cross_attention=only_cross_attention,
                upcast_attention=upcast_attention,
            )
            for _ in range(depth)
        )
        self.proj_out = _projection(dim, channels, use_linear_projection)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """``x`` is ``(N, channels, H, W)``."""
        height, width = x.shape[-2:]
        h = self.norm(x)
        linear = self.use_linear_projection
        h = self.proj_in(_tokens(h)) if linear else _tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, context)
        if linear:
            return x + _feature_map(self.proj_out(h), height, width)
        return x + self.proj_out(_feature_map(h, height, width))


def _projection(in_channels: int, out_channels: int, linear: bool) -> nn.Linear | nn.Conv2d:
    if linear:
        return nn.Linear(in_channels, out_channels)
    return nn.Conv2d(in_channels, out_channels, 1)


def _tokens(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _feature_map(tokens: Tensor, height: int, width: int) -> Tensor:
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)
