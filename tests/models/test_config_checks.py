"""Wrong and hostile configurations are refused before anything is allocated."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from sfumato.errors import ConfigError
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.unet import UNet2DConditionModel

HOSTILE: list[dict[str, Any]] = [
    {"block_out_channels": [10**9]},
    {"block_out_channels": [10**9] * 4},
    {"block_out_channels": [16_384] * 4, "layers_per_block": 64},
    {"block_out_channels": []},
    {"block_out_channels": 320},
    {"block_out_channels": [64] * 10_000},
    {"block_out_channels": [320, 640, 1280, "1280"]},
    {"layers_per_block": 1e6},
    {"layers_per_block": 10**6},
    {"layers_per_block": 0},
    {"in_channels": "4"},
    {"in_channels": -1},
    {"in_channels": True},
    {"out_channels": 0},
    {"norm_num_groups": 0},
    {"norm_num_groups": 9},
    {"norm_num_groups": None},
    {"act_fn": "os.system"},
    {"down_block_types": ["DownBlock3D"] * 4},
    {"sample_size": 0},
    {"sample_size": "64"},
]
HOSTILE_UNET: list[dict[str, Any]] = [
    {"cross_attention_dim": -1},
    {"cross_attention_dim": [768, 768]},
    {"attention_head_dim": 0},
    {"attention_head_dim": 10**6},
    {"attention_head_dim": [8, 8, 8, 0]},
    {"attention_head_dim": 700},
    {"attention_head_dim": [8, 8]},
    {"num_attention_heads": 8},
    {"transformer_layers_per_block": 10**6},
    {"transformer_layers_per_block": [1, 1, 1, [1, 1]]},
    {"transformer_layers_per_block": [1, 2]},
    {
        "transformer_layers_per_block": [[[1], [1]]] * 4,
        "reverse_transformer_layers_per_block": [1] * 4,
    },
    {"only_cross_attention": 1},
    {
        "transformer_layers_per_block": [[1], 1, 1, 1],
        "reverse_transformer_layers_per_block": [1, 1, 1, 1],
    },
    {"up_block_types": ["UpBlock2D"]},
    {"mid_block_type": "UNetMidBlock3D"},
    {"only_cross_attention": "yes"},
    {"only_cross_attention": [True]},
    {"dual_cross_attention": True},
    {"attention_type": "gated"},
    {"class_embed_type": "Projection"},
    {"class_embed_type": "projection"},
    {"addition_embed_type": "text_time"},
    {"addition_embed_type": "image"},
    {"addition_embed_type": "image_hint"},
    {"addition_embed_type": "text", "addition_embed_type_num_heads": 7},
    {"encoder_hid_dim_type": "text_proj"},
    {"encoder_hid_dim": 768, "cross_attention_dim": [768] * 4},
    {"time_embedding_type": "fourier", "time_embedding_dim": 33},
    {"time_embedding_type": "none"},
    {"resnet_time_scale_shift": "ada_group"},
    {"conv_in_kernel": 0},
    {"dropout": 2},
    {"norm_eps": float("nan")},
    {"norm_eps": float("inf")},
    {"mid_block_scale_factor": 0},
    {"resnet_out_scale_factor": 0.0},
    {"freq_shift": 160},
    {"num_class_embeds": 10**12},
    {"use_linear_projection": "false"},
    {"center_input_sample": None},
    {"cross_attention_norm": "batch_norm"},
    {
        "cross_attention_norm": "group_norm",
        "cross_attention_dim": 100,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    },
]
HOSTILE_AUTOENCODER: list[dict[str, Any]] = [
    {"latent_channels": 0},
    {"latent_channels": 10**9},
    {"scaling_factor": 0},
    {"scaling_factor": "0.18215"},
    {"shift_factor": float("inf")},
    {"latents_mean": [0.0]},
    {"latents_std": 1.0},
    {"up_block_types": ["UpBlock2D"]},
    {"use_quant_conv": 1},
    {"block_out_channels": [16_384] * 16, "layers_per_block": 64},
]


@pytest.mark.parametrize("fields", HOSTILE + HOSTILE_UNET, ids=str)
def test_a_hostile_unet_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        UNet2DConditionModel.from_config(fields)
    names = [*fields, "block_out_channels", "down_block_types", "parameters"]
    assert any(name in str(caught.value) for name in names)


@pytest.mark.parametrize("fields", HOSTILE + HOSTILE_AUTOENCODER, ids=str)
def test_a_hostile_autoencoder_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        AutoencoderKL.from_config(fields)


def test_an_error_names_the_allowed_values() -> None:
    with pytest.raises(ConfigError, match="'default', 'scale_shift'"):
        UNet2DConditionModel(resnet_time_scale_shift="ada_group")
    with pytest.raises(ConfigError, match="CrossAttnDownBlock2D"):
        UNet2DConditionModel(down_block_types=["CrossAttnDownBlock"] * 4)


def test_a_misspelt_option_is_reported_with_the_right_one() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'cross_attention_dim'"):
        UNet2DConditionModel(cross_attn_dim=768)


def test_unknown_keys_of_a_file_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    values = {
        "_class_name": "os.system",
        "_diffusers_version": "../",
        "auto_map": {"AutoModel": "evil.Model"},
        "norm_num_groups": 8,
        "block_out_channels": [16],
    }
    network = AutoencoderKL.from_config(values, latent_channels=2)
    assert network.config.latent_channels == 2
    assert network.config.norm_num_groups == 8
    assert "auto_map" in caplog.text
    assert "os.system" not in caplog.text
