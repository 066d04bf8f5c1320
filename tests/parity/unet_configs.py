"""Random tiny UNet configurations, and random inputs for them."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from sfumato.models.unet_stages import DOWN_BLOCKS, MID_BLOCKS, UP_BLOCKS
from tests.parity.networks import sometimes

Config = dict[str, Any]
CONTEXT = 32


def random_config(rng: random.Random) -> Config:
    """Options drawn together as the oracle accepts them."""
    blocks = rng.choice([1, 2, 2, 2, 3, 3, 4])
    layers = rng.choice([1, 1, 2, tuple(rng.choice([1, 2]) for _ in range(blocks))])
    heads_per_block = tuple(rng.choice([2, 4, 8]) for _ in range(blocks))
    config: Config = {
        "in_channels": rng.choice([4, 4, 5, 7, 8, 9]),
        "out_channels": rng.choice([3, 4, 8]),
        "block_out_channels": tuple(rng.choice([16, 24, 32]) for _ in range(blocks)),
        "norm_num_groups": rng.choice([4, 8]),
        "layers_per_block": layers,
        "cross_attention_dim": rng.choice([CONTEXT, (CONTEXT,) * blocks]),
        "attention_head_dim": rng.choice([2, 8, heads_per_block]),
        "act_fn": rng.choice(["silu", "silu", "swish", "gelu", "mish", "relu"]),
        "norm_eps": rng.choice([1e-5, 1e-6]),
        "use_linear_projection": rng.random() < 0.5,
        "upcast_attention": rng.random() < 0.3,
        "resnet_time_scale_shift": rng.choice(["default", "scale_shift"]),
        "flip_sin_to_cos": rng.random() < 0.7,
        "freq_shift": rng.choice([0, 0, 1]),
        "center_input_sample": rng.random() < 0.2,
        "downsample_padding": rng.choice([1, 1, 0]),
        "mid_block_scale_factor": rng.choice([1, 1, 1.4]),
        "conv_in_kernel": rng.choice([3, 3, 1, 5]),
        "conv_out_kernel": rng.choice([3, 3, 1, 5]),
        "only_cross_attention": rng.choice(
            [False, False, True, tuple(rng.random() < 0.5 for _ in range(blocks))]
        ),
    }
    config |= _blocks(rng, blocks)
    config |= _depths(rng, blocks, layers)
    return config | _time(rng) | _extra_conditions(rng, config)


def _blocks(rng: random.Random, blocks: int) -> Config:
    stable_diffusion = rng.random() < 0.5
    down = ("CrossAttnDownBlock2D", "DownBlock2D") if stable_diffusion else DOWN_BLOCKS
    up = ("CrossAttnUpBlock2D", "UpBlock2D") if stable_diffusion else UP_BLOCKS
    return {
        "down_block_types": tuple(rng.choice(down) for _ in range(blocks)),
        "up_block_types": tuple(rng.choice(up) for _ in range(blocks)),
        "mid_block_type": rng.choice(MID_BLOCKS[1:2] if stable_diffusion else MID_BLOCKS),
        "resnet_skip_time_act": rng.random() < 0.5,
        "resnet_out_scale_factor": rng.choice([1.0, 1.4]),
        "cross_attention_norm": rng.choice([None, None, "group_norm"]),
        "mid_block_only_cross_attention": rng.choice([None, True, False]),
    }


def _depths(rng: random.Random, blocks: int, layers: int | tuple[int, ...]) -> Config:
    per_block = layers if isinstance(layers, tuple) else (layers,) * blocks
    kind = rng.choice(["one", "number", "per block", "per layer", "mirrored by hand"])
    if kind == "one":
        return {}
    if kind == "number":
        return {"transformer_layers_per_block": 2}
    down = tuple(rng.choice([1, 2]) for _ in range(blocks))
    if kind == "per block":
        return {"transformer_layers_per_block": down}
    up = tuple(rng.choice([1, 2]) for _ in range(blocks))
    if kind == "per layer":
        down = tuple(tuple(rng.choice([0, 1, 2]) for _ in range(n)) for n in per_block)
        up = tuple(tuple(rng.choice([1, 2]) for _ in range(n + 1)) for n in per_block[::-1])
    return {
        "transformer_layers_per_block": down,
        "reverse_transformer_layers_per_block": up,
    }


def _time(rng: random.Random) -> Config:
    return {
        **sometimes(rng, 0.2, {"time_embedding_type": "fourier"}),
        **sometimes(rng, 0.2, {"time_embedding_dim": 40}),
        **sometimes(rng, 0.2, {"time_embedding_act_fn": rng.choice(["silu", "gelu"])}),
        **sometimes(rng, 0.2, {"timestep_post_act": rng.choice(["silu", "mish"])}),
        **sometimes(rng, 0.3, {"time_cond_proj_dim": 12}),
    }


def _extra_conditions(rng: random.Random, config: Config) -> Config:
    classes = rng.choice(
        [
            {},
            {"num_class_embeds": 10},
            {"class_embed_type": "timestep"},
            {"class_embed_type": "identity"},
            {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 20},
            {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 20},
        ]
    )
    additions: list[Config] = [
        {},
        {"addition_embed_type": "text", "addition_embed_type_num_heads": rng.choice([1, 4, 8])},
        {"addition_embed_type": "text_image"},
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 20,
        },
        {"addition_embed_type": "image", "encoder_hid_dim": CONTEXT},
    ]
    addition = rng.choice(additions)
    extra = classes | addition
    # The oracle concatenates before it adds, so it can only do one of the two.
    if classes and not addition:
        extra["class_embeddings_concat"] = rng.random() < 0.4
    if isinstance(config["cross_attention_dim"], tuple):
        return {k: v for k, v in extra.items() if k in classes or k == "class_embeddings_concat"}
    if rng.random() < 0.3:
        kind = rng.choice(["text_proj", "text_image_proj", "image_proj", None])
        # Where text and image both come in, they have to be equally wide for the oracle.
        images = "image" in f"{kind} {addition.get('addition_embed_type')}"
        extra |= {"encoder_hid_dim": CONTEXT if images else 24, "encoder_hid_dim_type": kind}
    return extra


def random_inputs(rng: random.Random, config: Config) -> dict[str, Any]:
    """Arguments of ``forward`` for a configuration, residuals of adapters aside."""
    torch.manual_seed(rng.randrange(2**31))
    batch, tokens = rng.choice([1, 2, 3]), rng.choice([2, 5, 7])
    text_dim = CONTEXT
    inputs: dict[str, Any] = {
        "sample": torch.randn(batch, config["in_channels"], *_size(rng, config)),
        "timestep": rng.choice([0, 37, 999, 3.25, torch.tensor(7), torch.arange(batch) * 100]),
    }
    hid_dim = config.get("encoder_hid_dim")
    if hid_dim is not None:
        text_dim = hid_dim
    inputs["encoder_hidden_states"] = torch.randn(batch, tokens, text_dim)
    if rng.random() < 0.4 and _takes_mask(config):
        inputs["encoder_attention_mask"] = _mask(rng, batch, tokens)
    if config.get("time_cond_proj_dim"):
        inputs["timestep_cond"] = torch.randn(batch, config["time_cond_proj_dim"])
    labels = _class_labels(config, batch)
    if labels is not None:
        inputs["class_labels"] = labels
    return inputs | _added(config, batch)


def _takes_mask(config: Config) -> bool:
    """Image tokens are not masked, and the oracle fails where nothing but text is looked at."""
    blocks = (*config["down_block_types"], *config["up_block_types"], config["mid_block_type"])
    simple = any("Simple" in (kind or "") for kind in blocks)
    text_alone = config["only_cross_attention"] or config["mid_block_only_cross_attention"]
    return config.get("encoder_hid_dim_type") in (None, "text_proj") and not (simple and text_alone)


def _mask(rng: random.Random, batch: int, tokens: int) -> Tensor:
    mask = torch.ones(batch, tokens)
    mask[:, tokens // 2 + 1 :] = 0
    return mask.bool() if rng.random() < 0.5 else mask


def _size(rng: random.Random, config: Config) -> tuple[int, int]:
    """Odd sizes only where the oracle can do them: its other up blocks always double."""
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    if set(config["up_block_types"]) <= {"UpBlock2D", "CrossAttnUpBlock2D"} and rng.random() < 0.5:
        return rng.randrange(factor, 16), rng.randrange(factor, 16)
    return factor * rng.choice([1, 2]), factor * rng.choice([1, 2])


def _class_labels(config: Config, batch: int) -> Tensor | None:
    kind = config.get("class_embed_type")
    if kind == "timestep":
        return torch.arange(batch) * 50
    if kind == "identity":
        return torch.randn(batch, _time_width(config))
    if kind is not None:
        return torch.randn(batch, config["projection_class_embeddings_input_dim"])
    return torch.arange(batch) if "num_class_embeds" in config else None


def _time_width(config: Config) -> int:
    factor = 2 if config.get("time_embedding_type") == "fourier" else 4
    return config.get("time_embedding_dim") or factor * config["block_out_channels"][0]


def _added(config: Config, batch: int) -> dict[str, Any]:
    added: dict[str, Tensor] = {}
    kind, hid = config.get("addition_embed_type"), config.get("encoder_hid_dim")
    if kind == "text_time":
        added = {"text_embeds": torch.randn(batch, 4), "time_ids": torch.rand(batch, 2) * 64}
    elif kind == "text_image":
        added = {"text_embeds": torch.randn(batch, CONTEXT)}
        added["image_embeds"] = torch.randn(batch, CONTEXT)
    elif kind == "image":
        added = {"image_embeds": torch.randn(batch, hid or 0)}
    proj = config.get("encoder_hid_dim_type")
    if proj == "text_image_proj":
        added["image_embeds"] = torch.randn(batch, CONTEXT)
    elif proj == "image_proj":
        added["image_embeds"] = torch.randn(batch, hid or 0)
    return {"added_cond_kwargs": added}
