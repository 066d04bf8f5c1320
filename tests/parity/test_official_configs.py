"""The published configurations build with exactly the published names, shapes and counts."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.unet import UNet2DConditionModel
from tests.parity.networks import shapes

SD1 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
SD2 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "sample_size": 64,
}
SD2_768 = {**SD2, "sample_size": 96, "upcast_attention": True}
ADM = {"class_embed_type": "projection"}
UNETS: dict[str, tuple[dict[str, Any], int]] = {
    "stable-diffusion-v1-5": (SD1, 859_520_964),
    "stable-diffusion-inpainting": ({**SD1, "in_channels": 9}, 859_535_364),
    "instruct-pix2pix": ({**SD1, "in_channels": 8}, 859_532_484),
    "lcm-dreamshaper": ({**SD1, "time_cond_proj_dim": 256}, 859_602_884),
    "stable-diffusion-2-1-base": (SD2, 865_910_724),
    "stable-diffusion-2-1": (SD2_768, 865_910_724),
    "stable-diffusion-2-inpainting": ({**SD2, "in_channels": 9}, 865_925_124),
    "stable-diffusion-2-depth": ({**SD2, "in_channels": 5}, 865_913_604),
    "stable-diffusion-2-1-unclip": (
        {**SD2_768, **ADM, "projection_class_embeddings_input_dim": 2048},
        870_173_124,
    ),
    "stable-diffusion-x4-upscaler": (
        {
            "in_channels": 7,
            "block_out_channels": [256, 512, 512, 1024],
            "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
            "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
            "cross_attention_dim": 1024,
            "attention_head_dim": 8,
            "num_class_embeds": 1000,
            "only_cross_attention": [True, True, True, False],
            "use_linear_projection": True,
            "sample_size": 128,
        },
        473_398_020,
    ),
    "stable-diffusion-xl-base-1.0": (
        {
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": [5, 10, 20],
            "transformer_layers_per_block": [1, 2, 10],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
        },
        2_567_463_684,
    ),
}
AUTOENCODER = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}


@pytest.mark.parametrize("name", UNETS)
def test_a_published_unet_has_the_published_weights(name: str) -> None:
    config, count = UNETS[name]
    with torch.device("meta"):
        ours = UNet2DConditionModel.from_config(config)
        oracle = diffusers.UNet2DConditionModel(**config)
    assert shapes(ours) == shapes(oracle)
    assert ours.num_parameters() == oracle.num_parameters() == count


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (AUTOENCODER, 83_653_863),
        (
            {
                **AUTOENCODER,
                "block_out_channels": [128, 256, 512],
                "down_block_types": ["DownEncoderBlock2D"] * 3,
                "up_block_types": ["UpDecoderBlock2D"] * 3,
                "scaling_factor": 0.08333,
            },
            55_325_927,
        ),
    ],
)
def test_a_published_autoencoder_has_the_published_weights(
    config: dict[str, Any], count: int
) -> None:
    with torch.device("meta"):
        ours, oracle = AutoencoderKL.from_config(config), diffusers.AutoencoderKL(**config)
    assert shapes(ours) == shapes(oracle)
    assert ours.num_parameters() == oracle.num_parameters() == count


def test_defaults_of_all_fields_are_those_of_diffusers() -> None:
    for ours, oracle in (
        (UNet2DConditionModel, diffusers.UNet2DConditionModel),
        (AutoencoderKL, diffusers.AutoencoderKL),
    ):
        with torch.device("meta"):
            expected = {k: v for k, v in oracle().config.items() if not k.startswith("_")}
        actual = dict(ours.config_class())
        assert actual == expected
