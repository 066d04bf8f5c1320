"""What the UNet learns about time, classes, pooled text and images: one vector per sample.

The counterparts of `sfumato.models.unet_conditioning`, `sfumato.models.embeddings` and
`UNetEncoder._embed`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sfumato.errors import InputError
from sfumato.graph.layers import activation_kind, mlp
from sfumato.graph.ops import A, Ops
from sfumato.graph.weights import Weights
from sfumato.models.conventions import MAX_PERIOD, NORM_EPS
from sfumato.models.unet_config import UNet2DConditionConfig


def time_embedding(
    ops: Ops[A],
    weights: Weights,
    config: UNet2DConditionConfig,
    timesteps: A,
    context: A,
    class_labels: A | None,
    timestep_cond: A | None,
    added: Mapping[str, A],
) -> A:
    """``(N, C)`` for the residual blocks; arguments as of `sfumato.graph.unet.unet`.

    Raises:
        InputError: an input is missing that the configuration needs, or given without a place.
    """
    w = weights / "time_embedding"
    x = ops.cast(_time_waves(ops, weights, config, timesteps))
    if timestep_cond is not None:
        if config.time_cond_proj_dim is None:
            raise InputError("timestep_cond needs a model with `time_cond_proj_dim`.")
        x = ops.add(x, ops.linear(ops.cast(timestep_cond), w / "cond_proj"))
    emb = mlp(ops, w, x, activation_kind(config.act_fn))
    if config.timestep_post_act is not None:
        emb = ops.activation(emb, activation_kind(config.timestep_post_act))
    classes = _class_embedding(ops, weights, config, class_labels)
    if classes is not None and config.class_embeddings_concat:
        emb = ops.concat([emb, classes], axis=1)
    elif classes is not None:
        emb = ops.add(emb, classes)
    addition = _addition(ops, weights / "add_embedding", config, context, added)
    if addition is not None:
        emb = ops.add(emb, addition)
    if config.time_embedding_act_fn is not None:
        emb = ops.activation(emb, activation_kind(config.time_embedding_act_fn))
    return emb


def _time_waves(ops: Ops[A], weights: Weights, config: UNet2DConditionConfig, numbers: A) -> A:
    """The waves of times, or of class labels that are times."""
    if config.time_embedding_type == "fourier":
        frequencies = ops.reshape(ops.weight(weights / "time_proj", "weight"), (1, -1))
        # In this order, since angles are large and each product is rounded.
        angles = ops.mul(ops.mul(ops.mul(_column(ops, numbers), frequencies), 2.0), math.pi)
        return _waves(ops, angles, config.flip_sin_to_cos)
    return sinusoids(ops, config, numbers, config.block_out_channels[0])


def sinusoids(ops: Ops[A], config: UNet2DConditionConfig, numbers: A, width: int) -> A:
    """Waves ``(N, width)`` of numbers ``(N,)``, in float32; an odd width ends with a zero."""
    half = width // 2
    index = np.arange(half, dtype=np.float32)
    # Each step is rounded to float32, because torch's are: the highest frequencies meet times of
    # a thousand, where the last digit of an exponent shows.
    exponents = np.float32(-math.log(MAX_PERIOD)) * index / np.float32(half - config.freq_shift)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = ops.mul(_column(ops, numbers), ops.constant(frequencies[None]))
    waves = _waves(ops, angles, config.flip_sin_to_cos)
    if width % 2:
        zero = ops.constant(np.zeros((ops.shape(numbers)[0], 1), np.float32))
        waves = ops.concat([waves, zero], axis=1)
    return waves


def _waves(ops: Ops[A], angles: A, cosines_first: bool) -> A:
    waves = [ops.cos(angles), ops.sin(angles)]
    return ops.concat(waves if cosines_first else waves[::-1], axis=1)


def _column(ops: Ops[A], numbers: A) -> A:
    return ops.reshape(numbers, (-1, 1))


def _class_embedding(
    ops: Ops[A], weights: Weights, config: UNet2DConditionConfig, labels: A | None
) -> A | None:
    kind, w = config.class_embed_type, weights / "class_embedding"
    if kind is None and config.num_class_embeds is None:
        return None
    if labels is None:
        raise InputError("class_labels should be provided when num_class_embeds > 0")
    if kind is None:
        return ops.embedding(labels, w)
    if kind == "timestep":
        waves = _time_waves(ops, weights, config, labels)
        return mlp(ops, w, ops.cast(waves), activation_kind(config.act_fn))
    if kind == "identity":
        return ops.cast(labels)
    if kind == "projection":
        return mlp(ops, w, ops.cast(labels))
    return ops.linear(ops.cast(labels), w)


def _addition(
    ops: Ops[A], w: Weights, config: UNet2DConditionConfig, context: A, added: Mapping[str, A]
) -> A | None:
    """What ``addition_embed_type`` adds to the time embedding."""
    kind = config.addition_embed_type
    if kind is None:
        return None
    if kind == "text":
        return _pooled_text(ops, w, config, context)
    if kind == "text_time":
        text = needed(added, "text_embeds", f"addition_embed_type={kind!r}")
        ids = needed(added, "time_ids", f"addition_embed_type={kind!r}")
        assert config.addition_time_embed_dim is not None
        waves = sinusoids(ops, config, ops.reshape(ids, (-1,)), config.addition_time_embed_dim)
        waves = ops.reshape(waves, (ops.shape(text)[0], -1))
        return mlp(ops, w, ops.concat([ops.cast(text), ops.cast(waves)], axis=1))
    image = ops.cast(needed(added, "image_embeds", f"addition_embed_type={kind!r}"))
    projected = ops.linear(image, w / "image_proj")
    if kind == "image":
        return ops.layer_norm(projected, w / "image_norm", NORM_EPS)
    text = ops.linear(ops.cast(added.get("text_embeds", context)), w / "text_proj")
    return ops.add(projected, ops.layer_norm(text, w / "text_norm", NORM_EPS))


def _pooled_text(ops: Ops[A], w: Weights, config: UNet2DConditionConfig, context: A) -> A:
    """Text tokens pooled to one vector by attention from their mean; see `TextTimeEmbedding`."""
    x = ops.layer_norm(context, w / "norm1", NORM_EPS)
    pool = w / "pool"
    mean = ops.add(ops.mean(x, 1), ops.weight(pool, "positional_embedding"))
    tokens = ops.concat([mean, x], axis=1)
    pooled = ops.attention(
        ops.linear(mean, pool / "q_proj"),
        ops.linear(tokens, pool / "k_proj"),
        ops.linear(tokens, pool / "v_proj"),
        config.addition_embed_type_num_heads,
    )
    n, _, width = ops.shape(pooled)
    projected = ops.linear(ops.reshape(pooled, (n, width)), w / "proj")
    return ops.layer_norm(projected, w / "norm2", NORM_EPS)


def text_context(
    ops: Ops[A], weights: Weights, config: UNet2DConditionConfig, text: A, added: Mapping[str, A]
) -> A:
    """The tokens that cross-attention looks at; see ``encoder_hid_dim_type``."""
    kind, w = config.encoder_hid_dim_type, weights / "encoder_hid_proj"
    if config.encoder_hid_dim is None:
        return text
    if kind not in ("text_image_proj", "image_proj"):
        return ops.linear(text, w)
    image = ops.cast(needed(added, "image_embeds", f"encoder_hid_dim_type={kind!r}"))
    width = config.cross_attention_dim
    assert isinstance(width, int)
    tokens = ops.linear(image, w / "image_embeds")
    tokens = ops.reshape(tokens, (ops.shape(image)[0], -1, width))
    if kind == "image_proj":
        return ops.layer_norm(tokens, w / "norm", NORM_EPS)
    return ops.concat([tokens, ops.linear(text, w / "text_proj")], axis=1)


def needed(added: Mapping[str, Any], name: str, option: str) -> Any:
    """One of ``added`` that an option of the configuration needs."""
    if name not in added:
        raise InputError(f"A UNet with {option} needs `{name}` in `added_cond_kwargs`.")
    return added[name]
