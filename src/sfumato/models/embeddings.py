"""Vectors that tell the UNet about time, classes, pooled text and images.

Sinusoids are computed in float32 (float16 cannot tell step 999 from 1000 at the highest
frequencies); the caller casts them to the network's type before the first linear layer.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.models.conventions import MAX_PERIOD
from sfumato.models.layers import get_activation


class Timesteps(nn.Module):
    """Sinusoidal embedding of scalars (Ho et al., arXiv:2006.11239).

    Args:
        num_channels: width of the embedding; an odd one ends with a zero.
        flip_sin_to_cos: cosines first.
        downscale_freq_shift: subtracted from the number of frequencies in the exponent.
    """

    def __init__(
        self, num_channels: int, *, flip_sin_to_cos: bool, downscale_freq_shift: float
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.flip_sin_to_cos = flip_sin_to_cos
        self.downscale_freq_shift = downscale_freq_shift

    def forward(self, timesteps: Tensor) -> Tensor:
        """``(N,)`` numbers to ``(N, num_channels)`` in float32."""
        half = self.num_channels // 2
        index = torch.arange(half, dtype=torch.float32, device=timesteps.device)
        frequencies = torch.exp(-math.log(MAX_PERIOD) * index / (half - self.downscale_freq_shift))
        angles = timesteps[:, None].float() * frequencies
        waves = _waves(angles, self.flip_sin_to_cos)
        return F.pad(waves, (0, 1)) if self.num_channels % 2 else waves


class GaussianFourierProjection(nn.Module):
    """Random Fourier features of scalars (Song et al., arXiv:2011.13456); fixed, but saved.

    Args:
        embedding_size: number of frequencies, half the width of the embedding.
        flip_sin_to_cos: cosines first.
        scale: standard deviation of the frequencies.
        log: take the logarithm of the scalars first.
    """

    def __init__(
        self,
        embedding_size: int,
        *,
        flip_sin_to_cos: bool,
        scale: float = 1.0,
        log: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(embedding_size), requires_grad=False)
        nn.init.normal_(self.weight, std=scale)
        self.flip_sin_to_cos = flip_sin_to_cos
        self.log = log

    def forward(self, timesteps: Tensor) -> Tensor:
        """``(N,)`` numbers to ``(N, 2 * embedding_size)``."""
        if self.log:
            timesteps = timesteps.log()
        return _waves(timesteps[:, None] * self.weight * 2 * math.pi, self.flip_sin_to_cos)


def _waves(angles: Tensor, cosines_first: bool) -> Tensor:
    waves = (angles.cos(), angles.sin()) if cosines_first else (angles.sin(), angles.cos())
    return torch.cat(waves, dim=-1)


class LearnedTimesteps(nn.Embedding):
    """A learned vector for each timestep of training."""

    def forward(self, input: Tensor) -> Tensor:
        """``(N,)`` timesteps, whole numbers of whatever type, to ``(N, width)``."""
        return super().forward(input.long())


class TimestepEmbedding(nn.Module):
    """Two linear layers with an activation between, and optionally another one after.

    Args:
        in_channels, time_embed_dim: width of input and output.
        act_fn, post_act_fn: names of the activations.
        cond_proj_dim: width of a condition that is projected and added to the input; the distilled
            models (LCM) are told their guidance scale through it.
    """

    def __init__(
        self,
        in_channels: int,
        time_embed_dim: int,
        *,
        act_fn: str = "silu",
        post_act_fn: str | None = None,
        cond_proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        self.cond_proj = None
        if cond_proj_dim is not None:
            self.cond_proj = nn.Linear(cond_proj_dim, in_channels, bias=False)
        self.act = get_activation(act_fn)
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)
        self.post_act = None if post_act_fn is None else get_activation(post_act_fn)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """``x`` is ``(N, in_channels)``, ``condition`` ``(N, cond_proj_dim)``."""
        if condition is not None and self.cond_proj is not None:
            x = x + self.cond_proj(condition)
        x = self.linear_2(self.act(self.linear_1(x)))
        return x if self.post_act is None else self.post_act(x)


class AttentionPooling(nn.Module):
    """Tokens to one vector: their mean, with a learnt offset, attends to itself and to them."""

    def __init__(self, num_heads: int, embed_dim: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(1, embed_dim))
        nn.init.normal_(self.positional_embedding, std=embed_dim**-0.5)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        """``(N, L, embed_dim)`` to ``(N, embed_dim)``."""
        mean = x.mean(dim=1, keepdim=True) + self.positional_embedding.to(x.dtype)
        tokens = torch.cat([mean, x], dim=1)
        q, k, v = (
            projected.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(mean), self.k_proj(tokens), self.v_proj(tokens))
        )
        return F.scaled_dot_product_attention(q, k, v).flatten(1)


class TextTimeEmbedding(nn.Module):
    """Text tokens pooled to a vector that is added to the time embedding (DeepFloyd IF)."""

    def __init__(self, encoder_dim: int, time_embed_dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(encoder_dim)
        self.pool = AttentionPooling(num_heads, encoder_dim)
        self.proj = nn.Linear(encoder_dim, time_embed_dim)
        self.norm2 = nn.LayerNorm(time_embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(N, L, encoder_dim)`` to ``(N, time_embed_dim)``."""
        return self.norm2(self.proj(self.pool(self.norm1(tokens))))


class ImageTimeEmbedding(nn.Module):
    """An image embedding projected into the time embedding (Kandinsky 2.2)."""

    def __init__(self, image_embed_dim: int, time_embed_dim: int) -> None:
        super().__init__()
        self.image_proj = nn.Linear(image_embed_dim, time_embed_dim)
        self.image_norm = nn.LayerNorm(time_embed_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        """``(N, image_embed_dim)`` to ``(N, time_embed_dim)``."""
        return self.image_norm(self.image_proj(image_embeds))


class TextImageTimeEmbedding(nn.Module):
    """Pooled text and image embeddings projected into the time embedding (Kandinsky 2.1)."""

    def __init__(self, text_embed_dim: int, image_embed_dim: int, time_embed_dim: int) -> None:
        super().__init__()
        self.text_proj = nn.Linear(text_embed_dim, time_embed_dim)
        self.text_norm = nn.LayerNorm(time_embed_dim)
        self.image_proj = nn.Linear(image_embed_dim, time_embed_dim)

    def forward(self, text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
        """``(N, text_embed_dim)`` and ``(N, image_embed_dim)`` to ``(N, time_embed_dim)``."""
        return self.image_proj(image_embeds) + self.text_norm(self.text_proj(text_embeds))


class ImageProjection(nn.Module):
    """An image embedding turned into a few context tokens (Kandinsky 2.2, IP-adapters)."""

    #: Axes of the input; see `sfumato.models.image_projections`.
    input_ndim = 2

    def __init__(
        self, image_embed_dim: int, cross_attention_dim: int, *, num_image_text_embeds: int = 32
    ) -> None:
        super().__init__()
        self.image_embed_dim = image_embed_dim
        self.cross_attention_dim = cross_attention_dim
        self.num_image_text_embeds = num_image_text_embeds
        self.image_embeds = nn.Linear(image_embed_dim, num_image_text_embeds * cross_attention_dim)
        self.norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        """``(N, image_embed_dim)`` to ``(N, num_image_text_embeds, cross_attention_dim)``."""
        tokens = self.image_embeds(image_embeds).unflatten(1, (self.num_image_text_embeds, -1))
        return self.norm(tokens)


class TextImageProjection(nn.Module):
    """Context tokens from text tokens and an image embedding together (Kandinsky 2.1)."""

    def __init__(
        self,
        text_embed_dim: int,
        image_embed_dim: int,
        cross_attention_dim: int,
        *,
        num_image_text_embeds: int = 10,
    ) -> None:
        super().__init__()
        self.num_image_text_embeds = num_image_text_embeds
        self.image_embeds = nn.Linear(image_embed_dim, num_image_text_embeds * cross_attention_dim)
        self.text_proj = nn.Linear(text_embed_dim, cross_attention_dim)

    def forward(self, text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
        """``(N, L, text_embed_dim)`` to ``(N, num_image_text_embeds + L, cross_attention_dim)``."""
        image = self.image_embeds(image_embeds).unflatten(1, (self.num_image_text_embeds, -1))
        return torch.cat([image, self.text_proj(text_embeds)], dim=1)
