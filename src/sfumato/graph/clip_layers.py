"""The stack of pre-norm transformer layers inside CLIP's two encoders."""

from __future__ import annotations

from sfumato.graph.ops import A, Activation, Ops
from sfumato.graph.weights import Weights
from sfumato.text.clip_config import ACTIVATION_KINDS, CLIPTextConfig, CLIPVisionConfig


def encoder(
    ops: Ops[A],
    w: Weights,
    config: CLIPTextConfig | CLIPVisionConfig,
    x: A,
    *,
    bias: A | None = None,
    causal: bool = False,
    layers: int | None = None,
) -> list[A]:
    """The input ``(N, L, C)`` and the output of every layer.

    Args:
        ops, w: the backend, and the scope ``encoder``.
        config: of the network.
        x: embeddings.
        bias, causal: as of `Ops.attention`.
        layers: how many of the layers to run; None for all.
    """
    act: Activation = ACTIVATION_KINDS[config.hidden_act]  # pyright: ignore[reportAssignmentType]
    heads, eps = config.num_attention_heads, config.layer_norm_eps
    states = [x]
    for i in range(config.num_hidden_layers if layers is None else layers):
        layer = w / "layers" / i
        h = ops.layer_norm(x, layer / "layer_norm1", eps)
        attn = layer / "self_attn"
        q, k, v = (ops.linear(h, attn / name) for name in ("q_proj", "k_proj", "v_proj"))
        h = ops.attention(q, k, v, heads, bias, causal)
        x = ops.add(x, ops.linear(h, attn / "out_proj"))
        h = ops.layer_norm(x, layer / "layer_norm2", eps)
        h = ops.activation(ops.linear(h, layer / "mlp" / "fc1"), act)
        x = ops.add(x, ops.linear(h, layer / "mlp" / "fc2"))
        states.append(x)
    return states
