"""The UNet as a thing of its own: sizes, layouts, memory, missing inputs."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from sfumato.errors import InputError
from sfumato.models.unet import UNet2DConditionModel, UNet2DConditionOutput

SMALL: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def inputs(height: int = 8, width: int = 8) -> dict[str, Any]:
    torch.manual_seed(1)
    return {
        "sample": torch.randn(2, 4, height, width),
        "timestep": torch.tensor([1, 900]),
        "encoder_hidden_states": torch.randn(2, 7, 32),
    }


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**SMALL)


def test_gradient_checkpointing_gives_the_same_gradients(unet: UNet2DConditionModel) -> None:
    def gradients() -> list[torch.Tensor]:
        unet.zero_grad()
        unet(**inputs()).sample.square().mean().backward()
        return [p.grad.clone() for p in unet.parameters() if p.grad is not None]

    kept = gradients()
    assert len(kept) == len(list(unet.parameters()))
    unet.enable_gradient_checkpointing()
    assert unet.is_gradient_checkpointing
    recomputed = gradients()
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))
    unet.disable_gradient_checkpointing()
    assert not unet.is_gradient_checkpointing


def test_gradient_checkpointing_keeps_fewer_activations(unet: UNet2DConditionModel) -> None:
    def kept_elements() -> int:
        sizes: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            unet(**inputs())
        return sum(sizes)

    everything = kept_elements()
    unet.enable_gradient_checkpointing()
    assert kept_elements() < everything / 2


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 2), (7, 16)])
@pytest.mark.parametrize(
    "up_blocks",
    [
        ("UpBlock2D", "CrossAttnUpBlock2D"),
        ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
        ("AttnUpBlock2D", "UpBlock2D"),
    ],
)
@torch.no_grad()
def test_any_size_comes_back_as_it_was(size: tuple[int, int], up_blocks: tuple[str, ...]) -> None:
    unet = UNet2DConditionModel(**{**SMALL, "up_block_types": up_blocks, "norm_num_groups": 4})
    out = unet.eval()(**inputs(*size)).sample
    assert out.shape[-2:] == size
    assert out.isfinite().all()


@torch.no_grad()
def test_a_channels_last_network_stays_in_channels_last(unet: UNet2DConditionModel) -> None:
    unet.eval()
    expected = unet(**inputs()).sample
    assert expected.is_contiguous()
    unet.to(memory_format=torch.channels_last)
    given = inputs()
    given["sample"] = given["sample"].contiguous(memory_format=torch.channels_last)
    actual = unet(**given).sample
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert ((actual - expected).abs().max() / expected.abs().max()).item() < 1e-5


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_neighbours(unet: UNet2DConditionModel) -> None:
    unet.eval()
    together = unet(**inputs()).sample
    for i in range(2):
        alone = unet(**{k: v[i : i + 1] for k, v in inputs().items()}).sample
        assert (alone[0] - together[i]).abs().max() < 1e-5


def test_the_result_is_an_output_or_a_tuple(unet: UNet2DConditionModel) -> None:
    out = unet(**inputs())
    assert isinstance(out, UNet2DConditionOutput)
    (sample,) = unet(**inputs(), return_dict=False)
    assert torch.equal(sample, out.sample)
    assert torch.equal(out[0], out["sample"])


@pytest.mark.parametrize(
    ("fields", "given", "message"),
    [
        ({"num_class_embeds": 3}, {}, "class_labels should be provided"),
        ({}, {"timestep_cond": torch.ones(2, 8)}, "time_cond_proj_dim"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 20,
            },
            {"added_cond_kwargs": {"text_embeds": torch.ones(2, 4)}},
            "time_ids",
        ),
        ({"encoder_hid_dim": 16, "encoder_hid_dim_type": "image_proj"}, {}, "image_embeds"),
        (
            {},
            {
                "down_block_additional_residuals": [torch.zeros(1)],
                "mid_block_additional_residual": torch.zeros(1),
            },
            "4 skips",
        ),
    ],
)
def test_a_missing_input_is_named(
    fields: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        UNet2DConditionModel(**SMALL, **fields)(**inputs(), **given)


def test_what_a_network_says_about_itself(unet: UNet2DConditionModel) -> None:
    count = sum(p.numel() for p in unet.parameters())
    unet.conv_in.requires_grad_(False)
    assert unet.num_parameters() == count
    assert unet.num_parameters(only_trainable=True) == count - 16 * 4 * 9 - 16
    assert unet.get_memory_footprint() == 4 * count
    assert (unet.dtype, unet.device.type) == (torch.float32, "cpu")
    assert unet.to(torch.bfloat16).dtype == torch.bfloat16
    with torch.device("meta"):
        assert UNet2DConditionModel(unet.config).device.type == "meta"


def test_a_configuration_builds_the_same_network_again(unet: UNet2DConditionModel) -> None:
    names = {k: v.shape for k, v in unet.state_dict().items()}
    for config in (unet.config, unet.config.to_dict(), dict(unet.config)):
        again = UNet2DConditionModel.from_config(config)
        assert {k: v.shape for k, v in again.state_dict().items()} == names
    wider = UNet2DConditionModel.from_config(unet.config, in_channels=9)
    assert wider.config.replace(in_channels=4) == unet.config
    assert wider.conv_in.in_channels == 9


def test_a_network_can_be_pickled(unet: UNet2DConditionModel) -> None:
    again = pickle.loads(pickle.dumps(unet.eval()))
    assert again.config == unet.config
    with torch.no_grad():
        assert torch.equal(again(**inputs()).sample, unet(**inputs()).sample)
