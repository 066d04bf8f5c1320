"""The CLIP vision encoder, written once for every backend: the counterpart of
`sfumato.text.clip_vision`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

import numpy as np

from sfumato.errors import InputError
from sfumato.graph.clip_layers import encoder
from sfumato.graph.ops import A, Ops
from sfumato.graph.weights import Weights
from sfumato.text.clip_config import CLIPVisionConfig


@dataclass(frozen=True)
class VisionStates(Generic[A]):
    """What the vision encoder gives.

    Attributes:
        last_hidden_state: ``(N, positions, C)``, without the final layer norm.
        penultimate: the same one layer earlier, which some IP-Adapters read.
        pooled: ``(N, C)``, the class token after the final layer norm.
        image_embeds: ``(N, projection_dim)``, where the weights have a projection.
    """

    last_hidden_state: A
    penultimate: A
    pooled: A
    image_embeds: A | None


def clip_vision(
    ops: Ops[A], weights: Weights, config: CLIPVisionConfig, pixels: A
) -> VisionStates[A]:
    """Encode pictures.

    Args:
        ops: the backend.
        weights: under transformers' names.
        config: of the network.
        pixels: ``(N, channels, image_size, image_size)``, a plain array as `CLIPImageProcessor`
            makes it.

    Raises:
        InputError: pictures of another size.
        WeightsMismatchError: the weights are not those of the configuration.
    """
    n, *rest = ops.shape(pixels)
    side = config.image_size
    if rest != [config.num_channels, side, side]:
        raise InputError(
            f"`pixel_values` has to be (batch, {config.num_channels}, {side}, {side}) but is "
            f"{tuple(ops.shape(pixels))}."
        )
    w = weights / "vision_model"
    embeddings = w / "embeddings"
    patches = ops.conv2d(
        ops.to_map(pixels), embeddings / "patch_embedding", stride=config.patch_size
    )
    token = ops.weight(embeddings, "class_embedding")
    token = ops.broadcast_to(ops.reshape(token, (1, 1, -1)), (n, 1, config.hidden_size))
    x = ops.concat([token, ops.tokens(patches)], axis=1)
    x = ops.add(x, ops.weight(embeddings / "position_embedding", "weight"))
    x = ops.layer_norm(x, w / "pre_layrnorm", config.layer_norm_eps)
    states = encoder(ops, w / "encoder", config, x)
    last = states[-1]
    first = ops.constant(np.zeros(n, np.int64))
    pooled = ops.layer_norm(ops.take(last, first), w / "post_layernorm", config.layer_norm_eps)
    projection = weights / "visual_projection"
    embeds = ops.linear(pooled, projection) if "weight" in projection else None
    return VisionStates(last, states[-2:][0], pooled, embeds)
