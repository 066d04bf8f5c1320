"""The KL autoencoder, written once for every backend: the counterpart of
`sfumato.models.autoencoder`.
"""

from __future__ import annotations

from sfumato.graph.layers import (
    AROUND,
    activation_kind,
    downsample,
    map_attention,
    resnet,
    upsample,
)
from sfumato.graph.ops import A, Ops
from sfumato.graph.weights import Weights
from sfumato.models.autoencoder_config import AutoencoderKLConfig
from sfumato.models.conventions import VAE_EPS


def encode(ops: Ops[A], weights: Weights, config: AutoencoderKLConfig, images: A) -> A:
    """Moments of the latents of images.

    Args:
        ops: the backend.
        weights: under diffusers' names.
        config: of the network.
        images: ``(N, in_channels, H, W)`` in -1..1.

    Returns:
        ``(N, 2 * latent_channels, H/f, W/f)``: the means, then the logarithms of the variances
        (which are to be clamped to -30..20), as plain arrays of the network's type.
    """
    w = weights / "encoder"
    x = ops.conv2d(ops.to_map(images), w / "conv_in", padding=AROUND)
    last = len(config.block_out_channels) - 1
    for i, kind in enumerate(config.down_block_types):
        block = w / "down_blocks" / i
        x = _stage(ops, block, config, x, config.layers_per_block, kind.startswith("Attn"))
        if i < last:
            x = downsample(ops, block / "downsamplers" / 0, x, padding=0)
    x = _middle(ops, w / "mid_block", config, x)
    x = _out(ops, w, config, x)
    return ops.from_map(ops.conv2d(x, weights / "quant_conv") if config.use_quant_conv else x)


def decode(ops: Ops[A], weights: Weights, config: AutoencoderKLConfig, latents: A) -> A:
    """Images ``(N, out_channels, H, W)`` around -1..1 of latents ``(N, latent_channels, h, w)``.

    The latents are those of the network itself: divided by ``scaling_factor`` before. Arguments
    as of `encode`.
    """
    x, w = ops.to_map(latents), weights / "decoder"
    if config.use_post_quant_conv:
        x = ops.conv2d(x, weights / "post_quant_conv")
    x = _middle(ops, w / "mid_block", config, ops.conv2d(x, w / "conv_in", padding=AROUND))
    last = len(config.block_out_channels) - 1
    for i, kind in enumerate(config.up_block_types):
        block = w / "up_blocks" / i
        x = _stage(ops, block, config, x, config.layers_per_block + 1, kind.startswith("Attn"))
        if i < last:
            x = upsample(ops, block / "upsamplers" / 0, x)
    return ops.from_map(_out(ops, w, config, x))


def _stage(
    ops: Ops[A], w: Weights, config: AutoencoderKLConfig, x: A, layers: int, attends: bool
) -> A:
    """Residual blocks at one resolution, each followed by attention if asked for."""
    for j in range(layers):
        x = _resnet(ops, w / "resnets" / j, config, x)
        if attends:
            x = _attention(ops, w / "attentions" / j, config, x)
    return x


def _middle(ops: Ops[A], w: Weights, config: AutoencoderKLConfig, x: A) -> A:
    """The block at the lowest resolution."""
    x = _resnet(ops, w / "resnets" / 0, config, x)
    if config.mid_block_add_attention:
        x = _attention(ops, w / "attentions" / 0, config, x)
    return _resnet(ops, w / "resnets" / 1, config, x)


def _out(ops: Ops[A], w: Weights, config: AutoencoderKLConfig, x: A) -> A:
    x = ops.group_norm(x, w / "conv_norm_out", config.norm_num_groups, VAE_EPS, "silu")
    return ops.conv2d(x, w / "conv_out", padding=AROUND)


def _resnet(ops: Ops[A], w: Weights, config: AutoencoderKLConfig, x: A) -> A:
    act = activation_kind(config.act_fn)
    return resnet(ops, w, x, groups=config.norm_num_groups, eps=VAE_EPS, act=act)


def _attention(ops: Ops[A], w: Weights, config: AutoencoderKLConfig, x: A) -> A:
    return map_attention(ops, w, x, heads=1, groups=config.norm_num_groups, eps=VAE_EPS)
