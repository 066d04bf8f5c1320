"""Attention gives the same result whatever computes it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models.attention import Attention
from sfumato.models.processors import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from sfumato.models.unet import UNet2DConditionModel

UNET: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": (2, 4),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**UNET).eval()


@pytest.fixture
def inputs() -> dict[str, Any]:
    torch.manual_seed(1)
    return {
        "sample": torch.randn(3, 4, 8, 8),
        "timestep": 10,
        "encoder_hidden_states": torch.randn(3, 7, 32),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0, 0]] * 3),
    }


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("size", ["auto", "max", 1, 2, [1, 2] * 7])
@torch.no_grad()
def test_slices_give_the_unsliced_result(
    unet: UNet2DConditionModel, inputs: dict[str, Any], size: Any
) -> None:
    whole = unet(**inputs).sample
    unet.set_attention_slice(size)
    assert all(isinstance(p, SlicedAttnProcessor) for p in unet.attn_processors.values())
    assert difference(unet(**inputs).sample, whole) < 1e-5
    unet.set_attention_slice(None)
    assert torch.equal(unet(**inputs).sample, whole)


@torch.no_grad()
def test_slices_work_where_text_and_image_are_looked_at_together(inputs: dict[str, Any]) -> None:
    unet = UNet2DConditionModel(
        **{
            **UNET,
            "attention_head_dim": 4,
            "down_block_types": ("SimpleCrossAttnDownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "SimpleCrossAttnUpBlock2D"),
        }
    ).eval()
    whole = unet(**inputs).sample
    unet.set_attention_slice("auto")
    assert difference(unet(**inputs).sample, whole) < 1e-5


@pytest.mark.parametrize("size", [5, 0, -1, [1], "half", [1] * 13 + [5]])
def test_a_slice_that_no_layer_can_have_is_refused_and_nothing_changes(
    unet: UNet2DConditionModel, size: Any
) -> None:
    before = unet.attn_processors
    with pytest.raises(InputError):
        unet.set_attention_slice(size)
    assert unet.attn_processors == before


@torch.no_grad()
def test_attention_without_the_fused_kernel_gives_the_same(
    unet: UNet2DConditionModel, inputs: dict[str, Any]
) -> None:
    fused = unet(**inputs).sample
    unet.set_default_attn_processor()
    assert all(type(p) is AttnProcessor for p in unet.attn_processors.values())
    assert difference(unet(**inputs).sample, fused) < 1e-5


@torch.no_grad()
def test_fused_projections_give_the_same_and_can_be_undone(
    unet: UNet2DConditionModel, inputs: dict[str, Any]
) -> None:
    names, apart = list(unet.state_dict()), unet(**inputs).sample
    unet.fuse_qkv_projections()
    assert any("to_qkv" in name for name in unet.state_dict())
    assert difference(unet(**inputs).sample, apart) < 1e-5
    unet.unfuse_qkv_projections()
    assert list(unet.state_dict()) == names
    assert torch.equal(unet(**inputs).sample, apart)


def test_projections_of_text_and_image_together_cannot_be_fused() -> None:
    blocks = {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "attention_head_dim": 4}
    with pytest.raises(InputError, match="added"):
        UNet2DConditionModel(**{**UNET, **blocks}).fuse_qkv_projections()


class Recorder(AttnProcessor2_0):
    """A processor with a keyword of its own."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, *args: Any, strength: float = 0.0, **kwargs: Any) -> Tensor:
        self.seen.append(strength)
        return super().__call__(*args, **kwargs)


@torch.no_grad()
def test_keywords_reach_the_processors_that_know_them(
    unet: UNet2DConditionModel, inputs: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    recorder, name = Recorder(), "mid_block.attentions.0.transformer_blocks.0.attn2.processor"
    unet.set_attn_processor({**unet.attn_processors, name: recorder})
    unet(**inputs, cross_attention_kwargs={"strength": 0.5, "scale": 0.7})
    assert recorder.seen == [0.5]
    assert "strength" in caplog.text
    assert "scale" not in caplog.text


def test_processors_by_name_have_to_be_complete(unet: UNet2DConditionModel) -> None:
    processors = dict(unet.attn_processors)
    processors["mid_block.processor"] = processors.popitem()[1]
    with pytest.raises(InputError, match=r"mid_block\.processor"):
        unet.set_attn_processor(processors)


@pytest.mark.parametrize("wrong", [None, 5, AttnProcessor2_0], ids=["nothing", "number", "class"])
def test_what_is_no_processor_is_refused_and_changes_nothing(
    unet: UNet2DConditionModel, inputs: dict[str, Any], wrong: Any
) -> None:
    before = unet.attn_processors
    mixed = {**dict.fromkeys(before, AttnProcessor()), list(before)[-1]: wrong}
    for given in (wrong, mixed):
        with pytest.raises(InputError, match="something to call"):
            unet.set_attn_processor(given)
        assert unet.attn_processors == before
    assert torch.isfinite(unet(**inputs).sample).all()


@pytest.mark.parametrize("wrong", [1.5, "2", "bogus", {}, torch.tensor(0.5), object()])
def test_what_is_no_slice_size_is_refused(unet: UNet2DConditionModel, wrong: Any) -> None:
    for given in (wrong, [1, wrong]):
        with pytest.raises(InputError, match="slice_size has to be 'auto', 'max', a number"):
            unet.set_attention_slice(given)
    assert {type(p) for p in unet.attn_processors.values()} == {AttnProcessor2_0}


def test_whole_numbers_of_other_libraries_are_slice_sizes(unet: UNet2DConditionModel) -> None:
    for size in (np.int64(2), torch.tensor(2)):
        unet.set_attention_slice(size)  # pyright: ignore[reportArgumentType]
        sizes = {getattr(p, "slice_size", None) for p in unet.attn_processors.values()}
        assert sizes == {2}


class Trainable(nn.Module):
    """A processor with weights, as adapters have."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def __call__(self, attn: Attention, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        return self.gain * AttnProcessor2_0()(attn, hidden_states, **kwargs)


def test_weights_of_a_processor_belong_to_the_network_while_it_is_in_use() -> None:
    attention = Attention(16, heads=2, dim_head=8)
    names = list(attention.state_dict())
    x = torch.randn(1, 5, 16)
    plain = attention(x)
    attention.set_processor(Trainable())
    assert "processor.gain" in attention.state_dict()
    assert torch.allclose(attention(x), 2 * plain)
    attention.set_processor(AttnProcessor2_0())
    assert list(attention.state_dict()) == names
    assert torch.equal(attention(x), plain)


def test_attention_without_the_fused_kernel_keeps_double_precision() -> None:
    attention = Attention(16, heads=2, dim_head=8).double()
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    fused = attention(x)
    attention.set_processor(AttnProcessor())
    assert difference(attention(x), fused) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("processor", [AttnProcessor2_0(), AttnProcessor(), SlicedAttnProcessor(1)])
@torch.no_grad()
def test_scores_do_not_overflow_in_half_precision(dtype: torch.dtype, processor: Any) -> None:
    attention = Attention(16, heads=2, dim_head=8)
    for layer in (attention.to_q, attention.to_k):
        layer.weight.mul_(1000)  # scores of about 1e6, beyond what float16 holds
    attention.set_processor(processor)
    exact = attention(torch.ones(1, 5, 16))
    half = attention.to(dtype)(torch.ones(1, 5, 16, dtype=dtype))
    assert half.dtype == dtype
    assert difference(half.float(), exact) < 0.05
