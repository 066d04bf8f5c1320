"""The CLIP text encoder, written once for every backend: the counterpart of `sfumato.text.clip`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

import numpy as np

from sfumato.errors import InputError
from sfumato.graph.clip_layers import encoder
from sfumato.graph.ops import A, Ops
from sfumato.graph.weights import Weights
from sfumato.text.clip_config import CLIPTextConfig
from sfumato.text.prompt_inputs import check_clip_skip


@dataclass(frozen=True)
class TextStates(Generic[A]):
    """What the text encoder gives.

    Attributes:
        last_hidden_state: ``(N, L, C)`` after the final layer norm; with ``clip_skip``, of an
            earlier layer.
        pooled: ``(N, C)``, the vector at the end-of-text token.
        text_embeds: ``(N, projection_dim)``, where the weights have a projection.
    """

    last_hidden_state: A
    pooled: A
    text_embeds: A | None


def clip_text(
    ops: Ops[A],
    weights: Weights,
    config: CLIPTextConfig,
    ids: A,
    *,
    attention_mask: A | None = None,
    clip_skip: int = 0,
) -> TextStates[A]:
    """Encode token ids.

    Args:
        ops: the backend.
        weights: under transformers' names.
        config: of the network.
        ids: ``(N, L)`` integers below ``vocab_size``.
        attention_mask: ``(N, L)`` float32, 1 for tokens to attend to and 0 for padding.
        clip_skip: how many of the last layers to leave out, as pipelines count.

    Raises:
        InputError: more tokens than positions, or more layers left out than there are.
        WeightsMismatchError: the weights are not those of the configuration.
    """
    length, w = ops.shape(ids)[1], weights / "text_model"
    if length > config.max_position_embeddings:
        raise InputError(
            f"`input_ids` has {length} tokens per prompt but the text encoder has positions for at "
            f"most {config.max_position_embeddings} (`max_position_embeddings`).",
            hint="Truncate the prompt, or pass `truncation=True` to the tokenizer.",
        )
    check_clip_skip(clip_skip, config.num_hidden_layers)
    layers = config.num_hidden_layers - clip_skip
    positions = ops.constant(np.arange(length)[None])
    x = ops.add(
        ops.embedding(ids, w / "embeddings" / "token_embedding"),
        ops.embedding(positions, w / "embeddings" / "position_embedding"),
    )
    bias = None if attention_mask is None else _padding_bias(ops, attention_mask)
    states = encoder(ops, w / "encoder", config, x, bias=bias, causal=True, layers=layers)
    x = ops.layer_norm(states[-1], w / "final_layer_norm", config.layer_norm_eps)
    # The token 2 is the mistake of early checkpoints: see CLIPTextConfig.
    end = None if config.eos_token_id == 2 else config.eos_token_id
    pooled = ops.take(x, ops.position_of(ids, end))
    projection = weights / "text_projection"
    embeds = ops.linear(pooled, projection) if "weight" in projection else None
    return TextStates(x, pooled, embeds)


def _padding_bias(ops: Ops[A], mask: A) -> A:
    """``(N, 1, 1, L)``: the lowest number for padding; as in transformers, not minus infinity."""
    n, length = ops.shape(mask)
    lowest = float(np.finfo(np.float32).min)
    hidden = ops.mul(ops.add(ops.mul(mask, -1.0), 1.0), lowest)
    return ops.reshape(hidden, (n, 1, 1, length))
