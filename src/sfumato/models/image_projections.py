"""Pictures to context tokens: the small networks at the entrance of IP-Adapters.

Each kind of adapter (arXiv:2308.06721 and its successors) has its own; names of weights and of the
constructors' arguments are diffusers'. A UNet holds those of all its adapters in one
`MultiIPAdapterImageProjection`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import InputError

#: Channels of one attention head in every published resampler.
DIM_HEAD = 64


class ImagePromptProjection(Protocol):
    """What all kinds have in common.

    Attributes:
        image_embed_dim: width of the vectors that go in.
        cross_attention_dim: width of the tokens that come out.
        input_ndim: axes of the input: 2 for one vector per picture ``(N, C)``, 3 for all tokens of
            the image encoder ``(N, L, C)``.
    """

    @property
    def image_embed_dim(self) -> int: ...
    @property
    def cross_attention_dim(self) -> int: ...
    @property
    def input_ndim(self) -> int: ...
    def __call__(self, image_embeds: Tensor, /) -> Tensor: ...


class GELU(nn.Module):
    """A linear layer and a GELU."""

    def __init__(self, dim: int, dim_out: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim_out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class GELUFeedForward(nn.Module):
    """Two linear layers with a GELU between them; ``mult`` times as wide inside as at the entry."""

    def __init__(self, dim: int, dim_out: int, *, mult: float, bias: bool = True) -> None:
        super().__init__()
        inner = round(dim * mult)
        # The dropout is never active; it keeps the numbering of the weights.
        self.net = nn.ModuleList(
            [GELU(dim, inner, bias), nn.Dropout(0.0), nn.Linear(inner, dim_out, bias=bias)]
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class IPAdapterFullImageProjection(nn.Module):
    """Every token of the image encoder becomes a context token ("full face")."""

    input_ndim = 3

    def __init__(self, image_embed_dim: int = 1024, cross_attention_dim: int = 1024) -> None:
        super().__init__()
        self.image_embed_dim = image_embed_dim
        self.cross_attention_dim = cross_attention_dim
        self.ff = GELUFeedForward(image_embed_dim, cross_attention_dim, mult=1)
        self.norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        """``(N, L, image_embed_dim)`` to ``(N, L, cross_attention_dim)``."""
        return self.norm(self.ff(image_embeds))


class IPAdapterFaceIDImageProjection(nn.Module):
    """A face's vector, as recognition networks give it, becomes a few context tokens."""

    input_ndim = 2

    def __init__(
        self,
        image_embed_dim: int = 1024,
        cross_attention_dim: int = 1024,
        mult: float = 1,
        num_tokens: int = 1,
    ) -> None:
        super().__init__()
        self.image_embed_dim = image_embed_dim
        self.cross_attention_dim = cross_attention_dim
        self.num_tokens = num_tokens
        self.ff = GELUFeedForward(image_embed_dim, cross_attention_dim * num_tokens, mult=mult)
        self.norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        """``(N, image_embed_dim)`` to ``(N, num_tokens, cross_attention_dim)``."""
        return self.norm(self.ff(image_embeds).unflatten(-1, (self.num_tokens, -1)))


class PerceiverAttention(nn.Module):
    """Latents attend to a picture's tokens and to themselves (arXiv:2204.14198)."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(dim, inner, bias=False)
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, dim, bias=False), nn.Dropout(0.0)])

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        """``(N, Q, dim)`` and ``(N, S, dim)`` to ``(N, Q, dim)``."""
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.to_q(latents), self.to_k(context), self.to_v(context))
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](out.transpose(1, 2).flatten(2))


class IPAdapterPlusImageProjectionBlock(nn.Module):
    """Attention and feed-forward of a resampler."""

    def __init__(
        self, embed_dims: int = 768, dim_head: int = DIM_HEAD, heads: int = 16, ffn_ratio: float = 4
    ) -> None:
        super().__init__()
        self.ln0 = nn.LayerNorm(embed_dims)
        self.ln1 = nn.LayerNorm(embed_dims)
        self.attn = PerceiverAttention(embed_dims, heads, dim_head)
        feed_forward = GELUFeedForward(embed_dims, embed_dims, mult=ffn_ratio, bias=False)
        self.ff = nn.ModuleList([nn.LayerNorm(embed_dims), feed_forward])

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """Picture tokens ``(N, L, C)`` and latents ``(N, Q, C)`` to new latents."""
        queries = self.ln1(latents)
        latents = latents + self.attn(queries, torch.cat([self.ln0(x), queries], dim=1))
        return latents + self.ff[1](self.ff[0](latents))


class IPAdapterPlusImageProjection(nn.Module):
    """Learnt latents ask the image encoder's tokens and become context tokens ("plus").

    Args:
        embed_dims, output_dims, hidden_dims: width of the input, of the output, and inside.
        depth: number of blocks.
        dim_head, heads: of the attentions.
        num_queries: number of latents, and so of context tokens.
        ffn_ratio: how much wider the feed-forward layers are inside.
    """

    input_ndim = 3

    def __init__(
        self,
        embed_dims: int = 768,
        output_dims: int = 1024,
        hidden_dims: int = 1280,
        depth: int = 4,
        dim_head: int = DIM_HEAD,
        heads: int = 16,
        num_queries: int = 8,
        ffn_ratio: float = 4,
    ) -> None:
        super().__init__()
        self.image_embed_dim = embed_dims
        self.cross_attention_dim = output_dims
        self.latents = nn.Parameter(torch.empty(1, num_queries, hidden_dims))
        nn.init.normal_(self.latents, std=hidden_dims**-0.5)
        self.proj_in = nn.Linear(embed_dims, hidden_dims)
        self.proj_out = nn.Linear(hidden_dims, output_dims)
        self.norm_out = nn.LayerNorm(output_dims)
        self.layers = nn.ModuleList(
            IPAdapterPlusImageProjectionBlock(hidden_dims, dim_head, heads, ffn_ratio)
            for _ in range(depth)
        )

    def forward(self, image_embeds: Tensor) -> Tensor:
        """``(N, L, embed_dims)`` to ``(N, num_queries, output_dims)``."""
        x = self.proj_in(image_embeds)
        latents = self.latents.expand(len(x), -1, -1)
        for block in self.layers:
            latents = block(x, latents)
        return self.norm_out(self.proj_out(latents))


class IPAdapterFaceIDPlusImageProjection(nn.Module):
    """A face's vector becomes latents, which ask the image encoder's tokens of the same face.

    Those tokens are set before a call, as in diffusers, in ``clip_embeds``.

    Args:
        embed_dims, output_dims: width inside and of the output.
        hidden_dims: width of ``clip_embeds``.
        id_embeddings_dim: width of the face's vector.
        depth, dim_head, heads, ffn_ratio: see `IPAdapterPlusImageProjection`.
        num_tokens: number of context tokens.
        ffproj_ratio: how much wider the first layers are inside.

    Attributes:
        clip_embeds: ``(N, pictures, L, hidden_dims)``, with guidance those of no picture first.
        shortcut: add the face's tokens to the output (the second version of the adapter does).
        shortcut_scale: factor on what the latents learnt, with ``shortcut``.
    """

    input_ndim = 2

    def __init__(
        self,
        embed_dims: int = 768,
        output_dims: int = 768,
        hidden_dims: int = 1280,
        id_embeddings_dim: int = 512,
        depth: int = 4,
        dim_head: int = DIM_HEAD,
        heads: int = 16,
        num_tokens: int = 4,
        ffn_ratio: float = 4,
        ffproj_ratio: float = 2,
    ) -> None:
        super().__init__()
        self.image_embed_dim = id_embeddings_dim
        self.cross_attention_dim = output_dims
        self.num_tokens = num_tokens
        self.clip_embeds: Tensor | None = None
        self.shortcut = False
        self.shortcut_scale = 1.0
        self.proj = GELUFeedForward(id_embeddings_dim, embed_dims * num_tokens, mult=ffproj_ratio)
        self.norm = nn.LayerNorm(embed_dims)
        self.proj_in = nn.Linear(hidden_dims, embed_dims)
        self.proj_out = nn.Linear(embed_dims, output_dims)
        self.norm_out = nn.LayerNorm(output_dims)
        self.layers = nn.ModuleList(
            IPAdapterPlusImageProjectionBlock(embed_dims, dim_head, heads, ffn_ratio)
            for _ in range(depth)
        )

    def forward(self, id_embeds: Tensor) -> Tensor:
        """``(N, id_embeddings_dim)`` to ``(N, num_tokens, output_dims)``."""
        face = self.norm(self.proj(id_embeds).unflatten(-1, (self.num_tokens, -1)))
        x = self.proj_in(self._picture_tokens(id_embeds))
        latents = face
        for block in self.layers:
            latents = block(x, latents)
        out = self.norm_out(self.proj_out(latents))
        return face + self.shortcut_scale * out if self.shortcut else out

    def _picture_tokens(self, id_embeds: Tensor) -> Tensor:
        tokens = self.clip_embeds
        width = self.proj_in.in_features
        if tokens is None or tokens.ndim != 4 or tokens.shape[-1] != width:
            found = "None" if tokens is None else f"of shape {tuple(tokens.shape)}"
            raise InputError(
                "A FaceID Plus adapter needs the image encoder's tokens of the face: `clip_embeds`"
                f" of its projection has to be (batch, pictures, tokens, {width}) but is {found}.",
                hint="Set unet.encoder_hid_proj.image_projection_layers[i].clip_embeds before the"
                " call.",
            )
        tokens = tokens.flatten(0, 1).to(id_embeds)
        if len(tokens) != len(id_embeds):
            raise InputError(
                f"`clip_embeds` describes {len(tokens)} pictures, but {len(id_embeds)} faces are"
                " given."
            )
        return tokens


class MultiIPAdapterImageProjection(nn.Module):
    """The projections of all IP-Adapters of a UNet.

    Args:
        IPAdapterImageProjectionLayers: one per adapter.
    """

    def __init__(self, IPAdapterImageProjectionLayers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.image_projection_layers = nn.ModuleList(IPAdapterImageProjectionLayers)

    @property
    def num_ip_adapters(self) -> int:
        """How many adapters there are."""
        return len(self.image_projection_layers)

    def forward(self, image_embeds: list[Tensor]) -> list[Tensor]:
        """Project the pictures of each adapter.

        Args:
            image_embeds: per adapter ``(N, pictures, C)``, or ``(N, pictures, L, C)`` for kinds
                that read all tokens of the image encoder.

        Returns:
            Per adapter ``(N, pictures, tokens, cross_attention_dim)``.

        Raises:
            InputError: the number of adapters, or a shape, is another.
        """
        if isinstance(image_embeds, Tensor):
            warnings.warn(
                "`image_embeds` as one tensor is deprecated: pass a list with one per adapter.",
                FutureWarning,
                stacklevel=2,
            )
            image_embeds = [image_embeds.unsqueeze(1)]
        if len(image_embeds) != self.num_ip_adapters:
            raise InputError(
                "image_embeds must have the same length as image_projection_layers, got"
                f" {len(image_embeds)} and {self.num_ip_adapters}"
            )
        layers: Any = self.image_projection_layers
        return [_project(layer, embeds) for layer, embeds in zip(layers, image_embeds, strict=True)]


def fitting_embeds(layer: Any, embeds: Tensor) -> Tensor:
    """Embeddings in the shape that a projection reads, pictures apart.

    Args:
        layer: an `ImagePromptProjection`.
        embeds: ``(N, pictures, C)`` or ``(N, pictures, L, C)``; where single vectors are read, an
            ``L`` of 1 is dropped, as faces' vectors often come with one.

    Raises:
        InputError: they cannot be for this projection.
    """
    axes = layer.input_ndim + 1
    if axes == 3 and embeds.ndim == 4 and embeds.shape[2] == 1:
        embeds = embeds.squeeze(2)
    if embeds.ndim != axes or embeds.shape[-1] != layer.image_embed_dim or 0 in embeds.shape:
        names = ("batch", "pictures", *(("tokens",) if axes == 4 else ()))
        raise InputError(
            f"The image embeddings for {type(layer).__name__} have to be ({', '.join(names)},"
            f" {layer.image_embed_dim}) but are {tuple(embeds.shape)}.",
            hint="Another image encoder made them, or they are for another kind of IP-Adapter.",
        )
    return embeds


def _project(layer: Any, embeds: Tensor) -> Tensor:
    embeds = fitting_embeds(layer, embeds)
    dtype = next(layer.parameters()).dtype
    return layer(embeds.flatten(0, 1).to(dtype)).unflatten(0, embeds.shape[:2])
