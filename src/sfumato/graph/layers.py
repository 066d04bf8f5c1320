"""The parts that the UNet and the autoencoder share: residual blocks, attention, changes of size.

Each function is one layer of `sfumato.models.layers` or `sfumato.models.attention` under the same
weights. Feature maps and tokens are those of `sfumato.graph.ops`.
"""

from __future__ import annotations

import numpy as np

from sfumato.graph.ops import A, Activation, Ops
from sfumato.graph.weights import Weights
from sfumato.models.conventions import ACTIVATION_KINDS, CONTEXT_GROUPS, NORM_EPS

#: One zero on every side.
AROUND = (1, 1, 1, 1)


def activation_kind(act_fn: str) -> Activation:
    """The function that a configuration's ``act_fn`` means."""
    kind: Activation = ACTIVATION_KINDS[act_fn]  # pyright: ignore[reportAssignmentType]
    return kind


def same_padding(kernel: int) -> tuple[int, int, int, int]:
    """Zeros that keep the size of a map under an odd kernel."""
    zeros = (kernel - 1) // 2
    return zeros, zeros, zeros, zeros


def resnet(
    ops: Ops[A],
    w: Weights,
    x: A,
    temb: A | None = None,
    *,
    groups: int,
    eps: float,
    act: Activation = "silu",
    scale_shift: bool = False,
    skip_time_act: bool = False,
    output_scale_factor: float = 1.0,
    resize: tuple[int, int] | None = None,
) -> A:
    """Two normalised 3x3 convolutions beside a shortcut; see `ResnetBlock2D`.

    Args:
        ops, w: the backend and the layer.
        x: a map.
        temb: time embedding ``(N, C)`` where the block listens to one.
        groups, eps, act: of both norms and after them.
        scale_shift: time scales and shifts the normalised map rather than being added before.
        skip_time_act: no activation before the projection of time.
        output_scale_factor: the sum is divided by it.
        resize: height and width that both branches are brought to before the convolutions.
    """
    h = ops.group_norm(x, w / "norm1", groups, eps, act)
    if resize is not None:
        x, h = _resized(ops, x, resize), _resized(ops, h, resize)
    h = ops.conv2d(h, w / "conv1", padding=AROUND)
    time = None
    if temb is not None and "weight" in w / "time_emb_proj":
        time = temb if skip_time_act else ops.activation(temb, act)
        time = ops.linear(time, w / "time_emb_proj")
    if time is not None and scale_shift:
        scale, shift = ops.split(time, 2)
        h = ops.scale_shift(ops.group_norm(h, w / "norm2", groups, eps), scale, shift)
        h = ops.activation(h, act)
    else:
        h = h if time is None else ops.add_vector(h, time)
        h = ops.group_norm(h, w / "norm2", groups, eps, act)
    h = ops.conv2d(h, w / "conv2", padding=AROUND)
    if "weight" in w / "conv_shortcut":
        x = ops.conv2d(x, w / "conv_shortcut")
    x = ops.add(x, h)
    return x if output_scale_factor == 1.0 else ops.mul(x, 1.0 / output_scale_factor)


def _resized(ops: Ops[A], x: A, size: tuple[int, int]) -> A:
    smaller = size[0] < ops.map_shape(x)[2] or size[1] < ops.map_shape(x)[3]
    return ops.average_pool(x) if smaller else ops.upsample(x, *size)


def downsample(ops: Ops[A], w: Weights, x: A, padding: int) -> A:
    """Half the size by a strided 3x3 convolution; ``padding`` 0 pads right and below alone."""
    zeros = (0, 1, 0, 1) if padding == 0 else (padding, padding, padding, padding)
    return ops.conv2d(x, w / "conv", stride=2, padding=zeros)


def upsample(ops: Ops[A], w: Weights, x: A, size: tuple[int, int] | None = None) -> A:
    """The double size, or ``size``, by repeating pixels; then a 3x3 convolution."""
    _, _, height, width = ops.map_shape(x)
    x = ops.upsample(x, *((2 * height, 2 * width) if size is None else size))
    return ops.conv2d(x, w / "conv", padding=AROUND)


def attention(
    ops: Ops[A],
    w: Weights,
    tokens: A,
    context: A | None = None,
    *,
    heads: int,
    bias: A | None = None,
    context_norm: str | None = None,
) -> A:
    """Multi-head attention of ``tokens`` ``(N, L, C)`` to themselves or a ``context``.

    Layers with ``add_k_proj`` attend to the context and, where they have ``to_k`` too, to
    themselves beside it; see `Attention`.

    Args:
        ops, w: the backend and the layer.
        tokens: what asks.
        context: ``(N, S, C')``, or None for self-attention.
        heads: number of heads.
        bias: ``(N, 1, 1, S)``, added to the scores of the context's tokens.
        context_norm: kind of the norm ``norm_cross`` over the context, if there is one.
    """
    if context is not None and context_norm is not None:
        context = _norm_context(ops, w / "norm_cross", context, context_norm)
    source = tokens if context is None else context
    q = ops.linear(tokens, w / "to_q")
    if "weight" in w / "add_k_proj":
        k, v = ops.linear(source, w / "add_k_proj"), ops.linear(source, w / "add_v_proj")
        if "weight" in w / "to_k":
            k = ops.concat([k, ops.linear(tokens, w / "to_k")], axis=1)
            v = ops.concat([v, ops.linear(tokens, w / "to_v")], axis=1)
            bias = None if bias is None else _padded(ops, bias, ops.shape(k)[1])
    else:
        k, v = ops.linear(source, w / "to_k"), ops.linear(source, w / "to_v")
    return ops.linear(ops.attention(q, k, v, heads, bias), w / "to_out" / 0)


def map_attention(
    ops: Ops[A],
    w: Weights,
    x: A,
    context: A | None = None,
    *,
    heads: int,
    groups: int,
    eps: float,
    bias: A | None = None,
    context_norm: str | None = None,
) -> A:
    """Attention of a map's pixels, normalised before and added after; see `attention`."""
    _, _, height, width = ops.map_shape(x)
    tokens = ops.tokens(ops.group_norm(x, w / "group_norm", groups, eps))
    tokens = attention(ops, w, tokens, context, heads=heads, bias=bias, context_norm=context_norm)
    return ops.add(x, ops.map_of_tokens(tokens, height, width))


def _norm_context(ops: Ops[A], w: Weights, context: A, kind: str) -> A:
    if kind == "layer_norm":
        return ops.layer_norm(context, w, NORM_EPS)
    as_map = ops.map_of_tokens(context, ops.shape(context)[1], 1)
    return ops.tokens(ops.group_norm(as_map, w, CONTEXT_GROUPS, NORM_EPS))


def _padded(ops: Ops[A], bias: A, keys: int) -> A:
    """A bias over the context with zeros for the image's own keys."""
    *lead, own = ops.shape(bias)
    if own >= keys:
        return bias
    return ops.concat([bias, ops.constant(np.zeros((*lead, keys - own), np.float32))], axis=3)


def feed_forward(ops: Ops[A], w: Weights, tokens: A) -> A:
    """A gated linear unit of four times the width, and back."""
    return ops.linear(ops.geglu(ops.linear(tokens, w / "net" / 0 / "proj")), w / "net" / 2)


def mlp(ops: Ops[A], w: Weights, x: A, act: Activation = "silu") -> A:
    """The linear layers ``linear_1`` and ``linear_2`` with ``act`` between."""
    return ops.linear(ops.activation(ops.linear(x, w / "linear_1"), act), w / "linear_2")
