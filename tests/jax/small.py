"""Pipelines with as few layers as there can be, for tests whose time goes into compiling."""

from __future__ import annotations

from typing import Any

from tests.pipelines.tiny import tiny_pipeline, tiny_text_encoder, tiny_unet, tiny_vae


def small_unet(**fields: Any) -> Any:
    """A UNet of two blocks."""
    few = {
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "block_out_channels": (32,),
        "mid_block_type": None,
    }
    return tiny_unet(3, **{**few, **fields})


def small_pipeline(**changes: Any) -> Any:
    """A text-to-image pipeline that draws 16 x 16 pixels of nonsense."""
    parts = {
        "unet": small_unet(),
        "vae": tiny_vae(1, layers_per_block=1, block_out_channels=(8, 16)),
        "text_encoder": tiny_text_encoder(2, num_hidden_layers=1),
    }
    return tiny_pipeline(**{**parts, **changes})
