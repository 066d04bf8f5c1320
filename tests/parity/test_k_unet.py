"""UNets of K blocks, as in the latent upscaler, compute what diffusers' do."""

from __future__ import annotations

import random
from typing import Any, cast

import diffusers
import pytest
import torch

from sfumato.errors import ConfigError, InputError
from sfumato.models.unet import UNet2DConditionModel
from tests.parity.networks import relative_error, shapes, share_weights

CROSS = "KCrossAttn{}Block2D"

#: As published, narrower.
UPSCALER: dict[str, Any] = {
    "act_fn": "gelu",
    "attention_head_dim": 16,
    "block_out_channels": (32, 32, 64, 64),
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "cross_attention_dim": 32,
    "cross_attention_norm": "layer_norm",
    "down_block_types": ("KDownBlock2D", *[CROSS.format("Down")] * 3),
    "in_channels": 8,
    "layers_per_block": (2, 1, 2, 3),
    "mid_block_type": None,
    "norm_num_groups": None,
    "out_channels": 5,
    "resnet_time_scale_shift": "scale_shift",
    "time_cond_proj_dim": 160,
    "time_embedding_type": "fourier",
    "timestep_post_act": "gelu",
    "up_block_types": (*[CROSS.format("Up")] * 3, "KUpBlock2D"),
}


def random_config(rng: random.Random) -> dict[str, Any]:
    """Options drawn together as the oracle accepts them."""
    blocks = rng.choice([2, 3, 4])
    down = [rng.choice(["KDownBlock2D", CROSS.format("Down")]) for _ in range(blocks)]
    up = [rng.choice(["KUpBlock2D", CROSS.format("Up")]) for _ in range(blocks)]
    if rng.random() < 0.7:  # the lowest block attends, and its maps are no skips
        down[-1], up[0] = CROSS.format("Down"), CROSS.format("Up")
        widths = (*(rng.choice([32, 64]) for _ in range(blocks - 2)), 128, 128)
        up[-1] = "KUpBlock2D" if blocks == 2 else up[-1]
        time = 128
    else:
        down[-1], time = "KDownBlock2D", rng.choice([40, 72])
        widths = tuple(rng.choice([32, 64]) for _ in range(blocks))
    return {
        **UPSCALER,
        "block_out_channels": widths,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "time_embedding_dim": time,
        "attention_head_dim": rng.choice(
            [8, 16, tuple(rng.choice([8, 16]) for _ in range(blocks))]
        ),
        "layers_per_block": rng.choice([1, 2, tuple(rng.choice([1, 2, 3]) for _ in range(blocks))]),
        "cross_attention_dim": rng.choice([32, (32,) * blocks]),
        "act_fn": rng.choice(["gelu", "gelu", "silu", "mish"]),
        "norm_eps": rng.choice([1e-5, 1e-6]),
        "norm_num_groups": rng.choice([None, None, 8]),
        "time_embedding_type": rng.choice(["fourier", "fourier", "positional"]),
        "flip_sin_to_cos": rng.random() < 0.5,
        "timestep_post_act": rng.choice(["gelu", "silu", None]),
        "time_cond_proj_dim": rng.choice([160, None]),
        "conv_in_kernel": rng.choice([1, 3]),
        "conv_out_kernel": rng.choice([1, 3]),
        "center_input_sample": rng.random() < 0.2,
        "mid_block_type": rng.choice([None, None, "UNetMidBlock2D", "UNetMidBlock2DCrossAttn"]),
    }


def make_pair(config: dict[str, Any], seed: int) -> tuple[Any, UNet2DConditionModel]:
    torch.manual_seed(seed)
    oracle = cast(Any, diffusers).UNet2DConditionModel(**config)
    ours = UNet2DConditionModel(**config)
    assert shapes(ours) == shapes(oracle)
    assert list(ours.state_dict()) == list(oracle.state_dict())
    share_weights(oracle, ours, seed)
    return oracle, ours


def inputs_for(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    height, width = (factor * rng.choice([2, 3]) for _ in range(2))
    batch = rng.choice([1, 2])
    inputs: dict[str, Any] = {
        "sample": torch.randn(batch, config["in_channels"], height, width),
        "timestep": rng.choice([3, 0.7, torch.tensor(-0.9), torch.rand(batch)]),
        "encoder_hidden_states": torch.randn(batch, 7, 32),
    }
    if config["time_cond_proj_dim"]:
        inputs["timestep_cond"] = torch.randn(batch, config["time_cond_proj_dim"])
    if rng.random() < 0.4:
        mask = torch.ones(batch, 7)
        mask[:, 4:] = 0
        inputs["encoder_attention_mask"] = mask
    return inputs


@pytest.mark.parametrize("seed", range(24))
@torch.no_grad()
def test_a_random_unet_of_k_blocks_predicts_what_diffusers_predicts(seed: int) -> None:
    rng = random.Random(seed)
    config = UPSCALER if seed == 0 else random_config(rng)
    oracle, ours = make_pair(config, seed)
    inputs = inputs_for(config, rng)
    assert relative_error(ours(**inputs).sample, oracle(**inputs).sample) < 1e-5


@torch.no_grad()
def test_attention_layers_have_the_names_of_diffusers_and_can_be_sliced_and_fused() -> None:
    oracle, ours = make_pair(UPSCALER, 1)
    assert set(ours.attn_processors) == set(oracle.attn_processors)
    inputs = inputs_for(UPSCALER, random.Random(1))
    expected = ours(**inputs).sample
    ours.set_attention_slice("max")
    assert relative_error(ours(**inputs).sample, expected) < 1e-5
    ours.set_attention_slice(None)
    ours.fuse_qkv_projections()
    assert relative_error(ours(**inputs).sample, expected) < 1e-5


def test_gradients_can_be_recomputed() -> None:
    _, ours = make_pair(UPSCALER, 2)
    inputs = inputs_for(UPSCALER, random.Random(2))
    gradients = []
    for recompute in (False, True):
        if recompute:
            ours.train().enable_gradient_checkpointing()
        ours.zero_grad()
        ours(**inputs).sample.square().mean().backward()
        weight = ours.get_parameter("down_blocks.1.resnets.0.norm1.linear.weight")
        assert weight.grad is not None
        gradients.append(weight.grad.clone())
    assert gradients[0].abs().max() > 0
    assert torch.allclose(*gradients, rtol=1e-5)


WRONG: dict[str, dict[str, Any]] = {
    "mixed": {"down_block_types": ("DownBlock2D", *UPSCALER["down_block_types"][1:])},
    "no skip": {"time_embedding_dim": 48},
    "one skip too many": {"down_block_types": ("KDownBlock2D",) * 4},
    "heads": {"attention_head_dim": 128},
    "groups": {"block_out_channels": (32, 100, 100, 100), "time_embedding_dim": 100},
}


@pytest.mark.parametrize("name", WRONG)
def test_blocks_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        UNet2DConditionModel(**{**UPSCALER, **WRONG[name]})


def test_ordinary_blocks_need_groups() -> None:
    with pytest.raises(ConfigError, match="norm_num_groups"):
        UNet2DConditionModel(norm_num_groups=None)


@torch.no_grad()
def test_a_size_that_cannot_be_halved_so_often_is_refused() -> None:
    ours = UNet2DConditionModel(**UPSCALER)
    inputs = inputs_for(UPSCALER, random.Random(0))
    inputs["sample"] = torch.randn(len(inputs["sample"]), 8, 18, 16)
    with pytest.raises(InputError, match="divisible by 2"):
        ours(**inputs)
