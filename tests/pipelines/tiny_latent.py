"""Tiny random models of the latent diffusion paper's kinds, without a text."""

from __future__ import annotations

from typing import Any

from sfumato.models.unet_2d import UNet2DModel
from sfumato.models.vq_autoencoder import VQModel
from sfumato.schedulers import DDIMScheduler
from tests.pipelines.tiny import VAE, _seeded

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "attention_head_dim": 16,
    "norm_num_groups": 8,
}
#: Few vectors, so that latents that differ in their last digit have the same nearest one.
VQ: dict[str, Any] = {**VAE, "latent_channels": 3, "num_vq_embeddings": 8}

#: The noise schedule of the paper's unconditional models.
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}


def tiny_unet_2d(seed: int = 0, **fields: Any) -> UNet2DModel:
    """A UNet with random weights, large enough to make every step change the picture."""
    return _seeded(seed, lambda: UNet2DModel(**{**UNET, **fields}))


def tiny_vq(seed: int = 0, **fields: Any) -> VQModel:
    """A first stage with a codebook; one latent is 2 x 2 pixels."""
    return _seeded(seed, lambda: VQModel(**{**VQ, **fields}))


def parts(seed: int = 0, **fields: Any) -> dict[str, Any]:
    """The components of an unconditional pipeline; ``fields`` are the UNet's."""
    return {
        "vqvae": tiny_vq(seed),
        "unet": tiny_unet_2d(seed + 1, **fields),
        "scheduler": DDIMScheduler(**SCHEDULE),
    }
