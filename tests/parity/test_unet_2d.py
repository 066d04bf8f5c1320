"""The UNet without a text computes what diffusers' does, over random configurations."""

from __future__ import annotations

import random
from typing import Any

import diffusers
import pytest
import torch

from sfumato.errors import ConfigError, InputError
from sfumato.models.unet_2d import UNet2DModel
from sfumato.models.unet_2d_config import DOWN_BLOCKS, UP_BLOCKS
from tests.parity.networks import relative_error, shapes, share_weights

Pair = tuple[diffusers.UNet2DModel, UNet2DModel]


def make_pair(config: dict[str, Any], seed: int = 0) -> Pair:
    torch.manual_seed(seed)
    oracle, ours = diffusers.UNet2DModel(**config), UNet2DModel(**config)
    assert shapes(ours) == shapes(oracle)
    assert list(ours.state_dict()) == list(oracle.state_dict())
    share_weights(oracle, ours, seed)
    return oracle, ours


def random_config(rng: random.Random) -> dict[str, Any]:
    blocks = rng.choice([1, 2, 2, 3, 3, 4])
    classes = rng.choice([{}, {}, {"num_class_embeds": 9}, {"class_embed_type": "timestep"}])
    time = rng.choice(["positional", "positional", "fourier", "learned"])
    return {
        "in_channels": rng.choice([3, 4, 6, 7]),
        "out_channels": rng.choice([3, 4]),
        "center_input_sample": rng.random() < 0.2,
        "time_embedding_type": time,
        "time_embedding_dim": rng.choice([None, 24]),
        "freq_shift": rng.choice([0, 1]),
        "flip_sin_to_cos": rng.random() < 0.7,
        "down_block_types": tuple(rng.choice(DOWN_BLOCKS) for _ in range(blocks)),
        "up_block_types": tuple(rng.choice(UP_BLOCKS) for _ in range(blocks)),
        "mid_block_type": rng.choice(["UNetMidBlock2D", "UNetMidBlock2D", None]),
        "block_out_channels": tuple(rng.choice([16, 24, 32]) for _ in range(blocks)),
        "layers_per_block": rng.choice([1, 2]),
        "mid_block_scale_factor": rng.choice([1, 1, 1.4]),
        "downsample_padding": rng.choice([1, 1, 0]),
        "downsample_type": rng.choice(["conv", "resnet"]),
        "upsample_type": rng.choice(["conv", "resnet"]),
        "act_fn": rng.choice(["silu", "silu", "mish", "gelu", "relu"]),
        "attention_head_dim": rng.choice([None, 2, 4, 8]),
        "norm_num_groups": rng.choice([4, 8]),
        "attn_norm_num_groups": rng.choice([None, None, 2]),
        "norm_eps": rng.choice([1e-5, 1e-6]),
        "resnet_time_scale_shift": rng.choice(["default", "default", "scale_shift"]),
        "add_attention": rng.random() < 0.8,
        "num_train_timesteps": 1000 if time == "learned" else None,
        **classes,
    }


@pytest.mark.parametrize("seed", range(30))
@torch.no_grad()
def test_a_random_unet_predicts_what_diffusers_predicts(seed: int) -> None:
    rng = random.Random(seed)
    config = random_config(rng)
    oracle, ours = make_pair(config, seed)
    factor, batch = 2 ** (len(config["block_out_channels"]) - 1), rng.choice([1, 3])
    sample = torch.randn(batch, config["in_channels"], 2 * factor, 3 * factor)
    timestep = rng.choice([1, 999, torch.tensor(500), torch.randint(1, 1000, (batch,))])
    labels = None
    if "num_class_embeds" in config or "class_embed_type" in config:
        labels = torch.randint(1, 9, (batch,))
    expected = oracle(sample, timestep, class_labels=labels).sample
    assert relative_error(ours(sample, timestep, class_labels=labels).sample, expected) < 1e-5


SMALL: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
}


@torch.no_grad()
def test_labels_may_be_embeddings() -> None:
    oracle, ours = make_pair({**SMALL, "class_embed_type": "identity"})
    sample, labels = torch.randn(2, 3, 8, 8), torch.randn(2, 64)
    expected = oracle(sample, 3, class_labels=labels).sample
    assert relative_error(ours(sample, 3, class_labels=labels).sample, expected) < 1e-5


@torch.no_grad()
def test_sizes_that_do_not_halve_evenly_are_drawn() -> None:
    ours = UNet2DModel(**SMALL)
    assert ours(torch.randn(1, 3, 7, 13), 5).sample.shape == (1, 3, 7, 13)


@torch.no_grad()
def test_widths_of_heads_may_be_given_per_block() -> None:
    """Against a network whose layers are told their heads one by one."""
    config = {
        **SMALL,
        "down_block_types": ("AttnDownBlock2D",) * 2,
        "up_block_types": ("AttnUpBlock2D",) * 2,
    }
    torch.manual_seed(0)
    ours = UNet2DModel(**{**config, "attention_head_dim": (4, 16)})
    heads = {n: m.heads for n, m in ours.named_modules() if hasattr(m, "sliceable_head_dim")}
    assert heads == {
        "down_blocks.0.attentions.0": 4,
        "down_blocks.1.attentions.0": 2,
        "up_blocks.0.attentions.0": 2,
        "up_blocks.0.attentions.1": 2,
        "up_blocks.1.attentions.0": 4,
        "up_blocks.1.attentions.1": 4,
        "mid_block.attentions.0": 2,
    }
    sample = torch.randn(1, 3, 8, 8)
    uniform = UNet2DModel(**{**config, "attention_head_dim": 4})
    uniform.load_state_dict(ours.state_dict())
    for name, module in uniform.named_modules():
        if name in heads:
            module.heads = heads[name]
            module.scale = (module.to_q.out_features // heads[name]) ** -0.5
    assert relative_error(ours(sample, 5).sample, uniform(sample, 5).sample) < 1e-5


def test_a_unet_is_trained_with_recomputed_activations_as_without() -> None:
    ours, sample = UNet2DModel(**SMALL), torch.randn(2, 3, 8, 8)
    grads = []
    for recompute in (False, True):
        ours.zero_grad()
        if recompute:
            ours.enable_gradient_checkpointing()
        ours(sample, torch.tensor([3, 400])).sample.square().mean().backward()
        grads.append([p.grad.clone() for p in ours.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


@torch.no_grad()
def test_attention_slices_leave_the_prediction() -> None:
    ours, sample = UNet2DModel(**SMALL), torch.randn(1, 3, 8, 8)
    whole = ours(sample, 5).sample
    ours.set_attention_slice("max")
    assert relative_error(ours(sample, 5).sample, whole) < 1e-5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("down_block_types", ("SkipDownBlock2D", "DownBlock2D")),
        ("down_block_types", ("DownBlock2D",)),
        ("attention_head_dim", (8, 8, 8)),
        ("attention_head_dim", 64),
        ("attention_head_dim", 0),
        ("attn_norm_num_groups", 5),
        ("time_embedding_type", "learned"),
        ("resnet_time_scale_shift", "spatial"),
        ("class_embed_type", "projection"),
        ("block_out_channels", (16, 30)),
        ("dropout", 2),
        ("layers_per_block", 1000),
    ],
)
def test_a_wrong_configuration_is_refused(field: str, value: Any) -> None:
    name = "num_train_timesteps" if value == "learned" else field
    with pytest.raises(ConfigError, match=name):
        UNet2DModel(**{**SMALL, field: value})


def test_labels_are_asked_for_and_refused_as_the_model_has_classes() -> None:
    sample, labels = torch.zeros(1, 3, 8, 8), torch.tensor([1])
    with pytest.raises(InputError, match="no classes"):
        UNet2DModel(**SMALL)(sample, 1, class_labels=labels)
    with pytest.raises(InputError, match="class_labels should be provided"):
        UNet2DModel(**SMALL, num_class_embeds=3)(sample, 1)
