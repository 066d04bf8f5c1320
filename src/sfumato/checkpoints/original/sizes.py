"""Configurations from the shapes of weights, for what shapes can say.

A family's configuration says what cannot be seen (numbers of heads, activations, scaling). The
sizes are always read from the file, so a network that somebody made narrower, deeper or with fewer
blocks loads too. Names here are the original ones, without the prefix of their network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count
from typing import Any

from sfumato.errors import CheckpointError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

#: Groups of every norm of the original code.
_GROUPS = 32

#: Channels of a head in Stable Diffusion 2 and in every CLIP.
_HEAD_CHANNELS = 64


def unet_sizes(shapes: Shapes, family: Mapping[str, Any]) -> dict[str, Any]:
    """The family's configuration of a UNet with the sizes that these weights have.

    Raises:
        CheckpointError: when these are no weights of such a UNet.
    """
    blocks = _down_blocks(shapes)
    widths = [width for width, _, _ in blocks]
    layers = [count for _, count, _ in blocks]
    attends = [bool(depth) for _, _, depth in blocks]
    middle = count_numbered(shapes, "middle_block.1.transformer_blocks.{}.norm1.weight")
    depths = [depth or middle or 1 for _, _, depth in blocks]
    inside = _first(shapes, r"input_blocks\.\d+\.1\.transformer_blocks\.0\.attn2\.to_k\.weight")
    projection = _first(shapes, r"\w+\.[\d.]+\.proj_in\.weight")
    config = {
        **family,
        "in_channels": size_of(shapes, "input_blocks.0.0.weight", 1),
        "out_channels": size_of(shapes, "out.2.weight", 0),
        "block_out_channels": widths,
        "layers_per_block": _one_or_all(layers),
        "transformer_layers_per_block": _one_or_all(depths),
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
    }
    if inside:
        config["cross_attention_dim"] = inside[-1]
    if projection:
        config["use_linear_projection"] = len(projection) == 2
    if "middle_block.0.in_layers.0.weight" not in shapes:
        config["mid_block_type"] = None
    if list(family["block_out_channels"]) != widths:
        config |= _rescaled_heads(family, widths)
    return config | _label_sizes(shapes)


def _down_blocks(shapes: Shapes) -> list[tuple[int, int, int]]:
    """(width, residual blocks, depth of the transformers) of each block on the way down."""
    blocks: list[tuple[int, int, int]] = []
    width, layers, depth, index = 0, 0, 0, 1
    while True:
        old = f"input_blocks.{index}"
        if f"{old}.0.in_layers.2.weight" in shapes:
            width, layers = size_of(shapes, f"{old}.0.in_layers.2.weight", 0), layers + 1
            while f"{old}.1.transformer_blocks.{depth}.norm1.weight" in shapes:
                depth += 1
        else:
            blocks.append((width, layers, depth))
            if f"{old}.0.op.weight" not in shapes:
                break
            layers, depth = 0, 0
        index += 1
    if any(layers == 0 for _, layers, _ in blocks):
        raise CheckpointError("The file's UNet is not one of Stable Diffusion, or incomplete.")
    return blocks


def _rescaled_heads(family: Mapping[str, Any], widths: list[int]) -> dict[str, Any]:
    """Numbers of heads for other widths than the family's, with as many channels where it says."""
    heads = family["attention_head_dim"]
    changes: dict[str, Any] = {}
    if isinstance(heads, list | tuple):
        channels = family["block_out_channels"][0] // heads[0]
        changes["attention_head_dim"] = [max(1, width // channels) for width in widths]
    flags = family.get("only_cross_attention", False)
    if isinstance(flags, list | tuple) and len(flags) != len(widths):
        changes["only_cross_attention"] = [flags[0]] * (len(widths) - 1) + [flags[-1]]
    return changes


def unet_2d_sizes(shapes: Shapes, family: Mapping[str, Any]) -> dict[str, Any]:
    """As `unet_sizes`, of a UNet that knows no tokens.

    ``attention_head_dim`` of the family is the width of a head; listed per block, it stands for as
    many heads in each block as in the first one.

    Raises:
        CheckpointError: when these are no weights of such a UNet.
    """
    outputs = count_numbered(shapes, "output_blocks.{}.0.in_layers.2.weight")
    up = re.compile(r"output_blocks\.(\d+)\.[12]\.(conv|in_layers\.2)\.weight")
    ends = [int(found[1]) for found in map(up.fullmatch, shapes) if found]
    layers = min(ends, default=outputs - 1)
    levels = range(outputs // (layers + 1) if layers > 0 else 0)
    starts = [1 + level * (layers + 1) for level in levels]
    widths = [size_of(shapes, f"input_blocks.{i}.0.in_layers.2.weight", 0) for i in starts]
    if not widths or outputs % (layers + 1):
        raise CheckpointError("The file's UNet is not one of latent diffusion, or incomplete.")
    attends = [f"input_blocks.{i}.1.qkv.weight" in shapes for i in starts]
    resizer = f"input_blocks.{1 + layers}.0.in_layers.2.weight"
    by_resnet = len(widths) > 1 and resizer in shapes
    plain = "Resnet{}sampleBlock2D" if by_resnet else "{}Block2D"
    emb = size_of(shapes, "input_blocks.1.0.emb_layers.1.weight", 0)
    width = size_of(shapes, "input_blocks.0.0.weight", 0)
    time = size_of(shapes, "time_embed.0.weight", 0)
    heads = family["attention_head_dim"]
    if isinstance(heads, list | tuple):
        count_of_heads = max(family["block_out_channels"][0] // heads[0], 1)
        heads = [max(w // count_of_heads, 1) for w in widths]
    kind = "resnet" if by_resnet else "conv"
    return {
        **family,
        "in_channels": size_of(shapes, "input_blocks.0.0.weight", 1),
        "out_channels": size_of(shapes, "out.2.weight", 0),
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["AttnDownBlock2D" if a else plain.format("Down") for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else plain.format("Up") for a in attends[::-1]],
        "downsample_type": kind,
        "upsample_type": kind,
        "attention_head_dim": heads,
        "time_embedding_dim": None if time == 4 * width else time,
        "add_attention": "middle_block.1.qkv.weight" in shapes,
        **_shift_of(emb == 2 * widths[0], family),
        **_label_sizes(shapes),
    }


def _shift_of(scales: bool, family: Mapping[str, Any]) -> dict[str, Any]:
    """How time enters; beside scales, diffusers leaves out a norm that the file has."""
    groups = family.get("norm_num_groups", _GROUPS) if scales else None
    return {
        "resnet_time_scale_shift": "scale_shift" if scales else "default",
        "attn_norm_num_groups": groups,
    }


def _label_sizes(shapes: Shapes) -> dict[str, Any]:
    if "label_emb.weight" in shapes:
        return {"num_class_embeds": shapes["label_emb.weight"][0]}
    if "label_emb.0.0.weight" in shapes:
        width = size_of(shapes, "label_emb.0.0.weight", 1)
        return {
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": width,
        }
    return {}


def autoencoder_sizes(shapes: Shapes, family: Mapping[str, Any]) -> dict[str, Any]:
    """The family's configuration of an autoencoder with the sizes that these weights have.

    Raises:
        CheckpointError: when these are no weights of such an autoencoder.
    """
    blocks = count_numbered(shapes, "encoder.down.{}.block.0.conv1.weight")
    widths = [size_of(shapes, f"encoder.down.{i}.block.0.conv1.weight", 0) for i in range(blocks)]
    attends = [f"encoder.down.{i}.attn.0.q.weight" in shapes for i in range(blocks)]
    return {
        **family,
        "in_channels": size_of(shapes, "encoder.conv_in.weight", 1),
        "out_channels": size_of(shapes, "decoder.conv_out.weight", 0),
        "latent_channels": size_of(shapes, "decoder.conv_in.weight", 1),
        "block_out_channels": widths,
        "layers_per_block": count_numbered(shapes, "encoder.down.0.block.{}.conv1.weight"),
        "down_block_types": [
            "AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends
        ],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in attends][
            ::-1
        ],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
    }


def vq_sizes(shapes: Shapes, family: Mapping[str, Any]) -> dict[str, Any]:
    """As `autoencoder_sizes`, of a first stage with a codebook."""
    sizes = autoencoder_sizes(shapes, family)
    for name in ("use_quant_conv", "use_post_quant_conv"):
        del sizes[name]
    return {
        **sizes,
        "num_vq_embeddings": size_of(shapes, "quantize.embedding.weight", 0),
        "vq_embed_dim": size_of(shapes, "quantize.embedding.weight", 1),
    }


def text_sizes(shapes: Shapes, family: Mapping[str, Any], layers: int | None) -> dict[str, Any]:
    """The family's configuration of a text encoder with the sizes that these weights have.

    Args:
        shapes: under transformers' names.
        family: the configuration.
        layers: at most so many are used, when the family leaves the last ones out.

    Raises:
        CheckpointError: when these are no weights of such a text encoder.
    """
    body = "text_model.encoder.layers"
    found = count_numbered(shapes, body + ".{}.layer_norm1.weight")
    width = size_of(shapes, "text_model.embeddings.token_embedding.weight", 1)
    config = {
        **family,
        "vocab_size": size_of(shapes, "text_model.embeddings.token_embedding.weight", 0),
        "max_position_embeddings": size_of(
            shapes, "text_model.embeddings.position_embedding.weight", 0
        ),
        "hidden_size": width,
        "intermediate_size": size_of(shapes, f"{body}.0.mlp.fc1.weight", 0),
        "num_hidden_layers": found if layers is None else min(found, layers),
    }
    if width != family["hidden_size"]:
        heads = max(1, width // _HEAD_CHANNELS)
        config["num_attention_heads"] = heads if width % heads == 0 else 1
    return config


def size_of(shapes: Shapes, name: str, axis: int) -> int:
    shape = shapes.get(name, ())
    if len(shape) <= axis:
        raise CheckpointError(
            f"The file has no usable tensor {name!r}.",
            hint="It is cut down, or no Stable Diffusion checkpoint.",
        )
    return shape[axis]


def count_numbered(shapes: Shapes, name: str) -> int:
    """How many there are, numbered from 0, where ``name`` has braces for the number."""
    return next(i for i in count() if name.format(i) not in shapes)


def _first(shapes: Shapes, pattern: str) -> Shape | None:
    find = re.compile(pattern)
    return next((shape for name, shape in shapes.items() if find.fullmatch(name)), None)


def _one_or_all(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values
