"""Tiny random models of the latent diffusion paper that draw classes, maps and layouts."""

from __future__ import annotations

from typing import Any

import torch

from sfumato import (
    ClassEmbedder,
    DDIMScheduler,
    LatentDiffusionPipeline,
    LayoutEncoder,
    SpatialRescaler,
)
from tests.pipelines import tiny, tiny_latent

LABELS = 5


def conditioner(kind: str, seed: int = 0) -> Any:
    """Of classes, maps or layouts, with random weights."""
    torch.manual_seed(seed)
    if kind == "class":
        return ClassEmbedder(n_classes=LABELS, embed_dim=tiny.WIDTH)
    if kind == "semantic":
        return SpatialRescaler(n_stages=1, in_channels=LABELS, out_channels=3)
    sizes = {"vocab_size": 100, "max_position_embeddings": 11, "d_model": tiny.WIDTH}
    return LayoutEncoder(**sizes, encoder_layers=2, encoder_ffn_dim=32, init_std=0.5).eval()


def pipeline(kind: str, seed: int = 0, **unet: Any) -> LatentDiffusionPipeline:
    """A model of that kind; one latent is 2 x 2 pixels, and it draws 16 x 16 pixels."""
    if kind == "semantic":
        network: Any = tiny_latent.tiny_unet_2d(seed + 1, **{"in_channels": 6, **unet})
    else:
        network = tiny.tiny_unet(seed + 1, **{"in_channels": 3, "out_channels": 3, **unet})
    made = LatentDiffusionPipeline(
        vae=tiny_latent.tiny_vq(seed + 2),
        unet=network,
        scheduler=DDIMScheduler(**tiny_latent.SCHEDULE),
        conditioner=conditioner(kind, seed),
    )
    made.set_progress_bar_config(disable=True)
    return made
