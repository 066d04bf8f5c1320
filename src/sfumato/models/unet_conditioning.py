"""The layers through which the UNet learns about time, classes, pooled text and images.

One function per option of the configuration; each returns the layer, or None where the option is
off. The UNet holds them under diffusers' names.
"""

from __future__ import annotations

from torch import nn

from sfumato.models.embeddings import (
    GaussianFourierProjection,
    ImageProjection,
    ImageTimeEmbedding,
    TextImageProjection,
    TextImageTimeEmbedding,
    TextTimeEmbedding,
    TimestepEmbedding,
    Timesteps,
)
from sfumato.models.unet_config import UNet2DConditionConfig
from sfumato.models.unet_stages import time_width


def time_projection(config: UNet2DConditionConfig) -> tuple[nn.Module, int]:
    """The layer that turns timesteps into waves, and the number of waves."""
    if config.time_embedding_type == "fourier":
        width = time_width(config)
        flip = config.flip_sin_to_cos
        return GaussianFourierProjection(width // 2, flip_sin_to_cos=flip), width
    width = config.block_out_channels[0]
    return sinusoids(config, width), width


def sinusoids(config: UNet2DConditionConfig, width: int) -> Timesteps:
    """Sinusoidal embedding with the configuration's conventions."""
    return Timesteps(
        width,
        flip_sin_to_cos=config.flip_sin_to_cos,
        downscale_freq_shift=config.freq_shift,
    )


def class_embedding(config: UNet2DConditionConfig, waves: int, width: int) -> nn.Module | None:
    """The layer for ``class_labels``; ``waves`` and ``width`` are those of the time embedding."""
    kind, labels_dim = config.class_embed_type, config.projection_class_embeddings_input_dim
    if kind == "timestep":
        return TimestepEmbedding(waves, width, act_fn=config.act_fn)
    if kind == "identity":
        return nn.Identity()
    if kind == "projection":
        assert labels_dim is not None
        return TimestepEmbedding(labels_dim, width)
    if kind == "simple_projection":
        assert labels_dim is not None
        return nn.Linear(labels_dim, width)
    if config.num_class_embeds is not None:
        return nn.Embedding(config.num_class_embeds, width)
    return None


def addition_embedding(config: UNet2DConditionConfig, width: int) -> nn.Module | None:
    """The layer whose output is added to the time embedding of ``width`` channels."""
    kind, text_dim = config.addition_embed_type, config.cross_attention_dim
    if kind is None:
        return None
    if kind == "text_time":
        assert config.projection_class_embeddings_input_dim is not None
        return TimestepEmbedding(config.projection_class_embeddings_input_dim, width)
    if kind == "image":
        assert config.encoder_hid_dim is not None
        return ImageTimeEmbedding(config.encoder_hid_dim, width)
    assert isinstance(text_dim, int)
    if kind == "text":
        heads = config.addition_embed_type_num_heads
        return TextTimeEmbedding(config.encoder_hid_dim or text_dim, width, num_heads=heads)
    return TextImageTimeEmbedding(text_dim, text_dim, width)


def text_projection(config: UNet2DConditionConfig) -> nn.Module | None:
    """The layer that brings the text (or an image embedding) to the width of cross-attention."""
    kind, in_dim, out_dim = (
        config.encoder_hid_dim_type,
        config.encoder_hid_dim,
        config.cross_attention_dim,
    )
    if in_dim is None:
        return None
    assert isinstance(out_dim, int)
    if kind == "text_image_proj":
        return TextImageProjection(in_dim, out_dim, out_dim)
    if kind == "image_proj":
        return ImageProjection(in_dim, out_dim)
    return nn.Linear(in_dim, out_dim)
