"""The UNet computes what diffusers' does, over random configurations and inputs."""

from __future__ import annotations

import random
from typing import Any

import diffusers
import pytest
import torch

from sfumato.models.unet import UNet2DConditionModel
from tests.parity.networks import relative_error, shapes, share_weights
from tests.parity.unet_configs import random_config, random_inputs

Pair = tuple[diffusers.UNet2DConditionModel, UNet2DConditionModel]


def make_pair(config: dict[str, Any], seed: int = 0) -> Pair:
    torch.manual_seed(seed)
    oracle, ours = diffusers.UNet2DConditionModel(**config), UNet2DConditionModel(**config)
    assert shapes(ours) == shapes(oracle)
    assert list(ours.state_dict()) == list(oracle.state_dict())
    share_weights(oracle, ours, seed)
    return oracle, ours


@pytest.mark.parametrize("seed", range(50))
def test_a_random_unet_predicts_what_diffusers_predicts(seed: int) -> None:
    rng = random.Random(seed)
    config = random_config(rng)
    oracle, ours = make_pair(config, seed)
    inputs = random_inputs(rng, config)
    with torch.no_grad():
        expected, actual = oracle(**inputs).sample, ours(**inputs).sample
    assert relative_error(actual, expected) < 1e-5


SMALL: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def small_inputs(size: int = 8) -> dict[str, Any]:
    torch.manual_seed(1)
    return {
        "sample": torch.randn(2, 4, size, size),
        "timestep": 500,
        "encoder_hidden_states": torch.randn(2, 7, 32),
    }


@torch.no_grad()
def assert_equal_outputs(pair: Pair, inputs: dict[str, Any]) -> None:
    oracle, ours = pair
    actual = ours(**inputs).sample
    assert relative_error(actual, oracle(**inputs).sample) < 1e-5


def residuals_like(shapes: list[tuple[int, int, int]]) -> list[torch.Tensor]:
    return [torch.randn(2, *shape) for shape in shapes]


SKIPS = [(16, 8, 8), (16, 8, 8), (16, 4, 4), (32, 4, 4)]


def test_the_residuals_of_a_controlnet_are_added_to_skips_and_middle() -> None:
    inputs = small_inputs()
    inputs["down_block_additional_residuals"] = tuple(residuals_like(SKIPS))
    inputs["mid_block_additional_residual"] = torch.randn(2, 32, 4, 4)
    assert_equal_outputs(make_pair(SMALL), inputs)


@pytest.mark.parametrize("argument", ["down_intrablock", "down_block"])
@pytest.mark.parametrize("first", ["CrossAttnDownBlock2D", "DownBlock2D"])
@pytest.mark.parametrize("with_middle", [False, True])
@torch.no_grad()
def test_the_residuals_of_a_t2i_adapter_are_added_once_per_block(
    argument: str, first: str, with_middle: bool
) -> None:
    oracle, ours = make_pair({**SMALL, "down_block_types": (first, "DownBlock2D")})
    size = 8 if first.startswith("Cross") else 4
    middle = [(32, 4, 4)] if with_middle else []
    given = residuals_like([(16, size, size), (32, 4, 4), *middle])
    name = f"{argument}_additional_residuals"
    actual = ours(**small_inputs(), **{name: given}).sample
    # The oracle empties the list that it is given.
    expected = oracle(**small_inputs(), **{name: list(given)}).sample
    assert len(given) == 2 + with_middle
    assert relative_error(actual, expected) < 1e-5
    assert relative_error(ours(**small_inputs()).sample, expected) > 1e-3


def test_self_attention_leaves_out_masked_pixels() -> None:
    pair = make_pair({**SMALL, "mid_block_type": "UNetMidBlock2D"})
    mask = torch.ones(2, 64)
    mask[:, 40:] = 0
    assert_equal_outputs(pair, {**small_inputs(), "attention_mask": mask})


def test_an_unclip_block_takes_the_mask_of_the_text_as_attention_mask() -> None:
    pair = make_pair(
        {
            **SMALL,
            "down_block_types": ("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
            "up_block_types": ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        }
    )
    mask = torch.ones(2, 7)
    mask[:, 4:] = 0
    assert_equal_outputs(pair, {**small_inputs(), "attention_mask": mask})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_other_types_give_what_diffusers_gives_in_them(dtype: torch.dtype) -> None:
    config = {**SMALL, "upcast_attention": True, "addition_embed_type": "text"}
    oracle, ours = make_pair({**config, "addition_embed_type_num_heads": 4})
    exact = oracle(**small_inputs()).sample
    inputs = {k: v.to(dtype) if k != "timestep" else v for k, v in small_inputs().items()}
    expected, actual = oracle.to(dtype)(**inputs).sample, ours.to(dtype)(**inputs).sample
    assert actual.dtype == dtype
    error = relative_error(expected.float(), exact)
    assert relative_error(actual.float(), exact) < max(1.5 * error, 1e-6)


@pytest.mark.parametrize("size", [8, 7])
@torch.no_grad()
def test_freeu_changes_the_first_two_up_blocks_as_in_diffusers(size: int) -> None:
    config = {
        **SMALL,
        "block_out_channels": (16, 16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    pair = make_pair(config)
    plain = pair[1](**small_inputs(size)).sample
    for network in pair:
        network.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    assert_equal_outputs(pair, small_inputs(size))
    assert relative_error(pair[1](**small_inputs(size)).sample, plain) > 1e-3
    pair[1].disable_freeu()
    assert torch.equal(pair[1](**small_inputs(size)).sample, plain)
    assert all(getattr(b, k) is None for b in pair[1].up_blocks for k in ("s1", "s2", "b1", "b2"))


@pytest.mark.parametrize("name", ["AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor"])
@torch.no_grad()
def test_a_processor_written_for_diffusers_runs_here(name: str) -> None:
    from diffusers.models import attention_processor

    oracle, ours = make_pair(SMALL)
    inputs = {**small_inputs(), "encoder_attention_mask": torch.tensor([[1] * 5 + [0] * 2] * 2)}
    expected = oracle(**inputs).sample
    arguments = (1,) if "Sliced" in name else ()
    ours.set_attn_processor(getattr(attention_processor, name)(*arguments))
    assert relative_error(ours(**inputs).sample, expected) < 1e-5


def test_attention_layers_have_the_names_that_diffusers_gives_them() -> None:
    oracle, ours = make_pair(SMALL)
    assert set(ours.attn_processors) == set(oracle.attn_processors)


@torch.no_grad()
def test_gradients_are_those_of_diffusers() -> None:
    oracle, ours = make_pair(SMALL)
    with torch.enable_grad():
        for network in (oracle, ours):
            network(**small_inputs()).sample.square().mean().backward()
    expected = dict(oracle.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        error = (parameter.grad - expected[name].grad).abs().max()
        assert error <= 1e-5 * expected[name].grad.abs().max() + 1e-7, name


def test_depths_per_layer_concern_only_blocks_with_transformers() -> None:
    pair = make_pair(
        {
            **SMALL,
            "layers_per_block": 2,
            "attention_head_dim": 4,
            "down_block_types": ("AttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "AttnUpBlock2D"),
            "transformer_layers_per_block": ((1,), (1, 2)),
            "reverse_transformer_layers_per_block": ((1, 1, 2), (1,)),
        }
    )
    assert_equal_outputs(pair, small_inputs())
