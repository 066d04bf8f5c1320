"""Softmax attention, in the form that is fast on each kind of device.

Written as two products with a softmax between, XLA's code for processors computes 4,096 tokens of
Stable Diffusion at a tenth of the rate of plain matrix products, because it multiplies batches of
matrices one number at a time, and holds all scores. Here each head and block of queries is a pair
of plain products. Accelerators get ``jax.nn.dot_product_attention``, for which XLA has kernels.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

#: Scores that a block holds, in float32: 4 MiB.
_BLOCK = 2**20


def attention(
    q: Array, k: Array, v: Array, heads: int, bias: Array | None = None, causal: bool = False
) -> Array:
    """Softmax attention; arguments as of `sfumato.graph.ops.Ops.attention`.

    Scores, softmax and sums are float32, whatever the type of the arguments.
    """
    n, length, _ = q.shape
    q, k, v = (x.reshape(n, x.shape[1], heads, x.shape[2] // heads) for x in (q, k, v))
    if causal:
        bias = _with_causal(bias, length, k.shape[1])

    def by_kernel(q: Array, k: Array, v: Array) -> Array:
        wide = None if bias is None else jnp.broadcast_to(bias, (n, heads, length, k.shape[1]))
        return jax.nn.dot_product_attention(q, k, v, bias=wide)

    def by_blocks(q: Array, k: Array, v: Array) -> Array:
        return _blocked(q, k, v, bias)

    return lax.platform_dependent(q, k, v, cpu=by_blocks, default=by_kernel).reshape(n, length, -1)


def _with_causal(bias: Array | None, length: int, keys: int) -> Array:
    lowest = jnp.finfo(jnp.float32).min
    hidden = jnp.triu(jnp.full((length, keys), lowest, jnp.float32), keys - length + 1)
    # The sum of both must not overflow: a row without any key would become NaN.
    return hidden[None, None] if bias is None else jnp.maximum(bias + hidden, lowest)


def _blocked(q: Array, k: Array, v: Array, bias: Array | None) -> Array:
    """Attention of ``(N, L, heads, D)``, one head of one sample and some queries at a time."""
    n, length, heads, width = q.shape
    keys, depth = k.shape[1], v.shape[3]
    rows = max(1, min(length, _BLOCK // keys))
    blocks = math.ceil(length / rows)
    rows = math.ceil(length / blocks)
    padded = blocks * rows - length

    def split(x: Array) -> Array:  # (N, L, heads, D) -> (N * heads, L, D)
        return x.transpose(0, 2, 1, 3).reshape(n * heads, x.shape[1], x.shape[3])

    queries = jnp.pad(split(q), ((0, 0), (0, padded), (0, 0)))
    queries = queries.reshape(n * heads, blocks, rows, width)
    arguments = [queries, split(k), split(v)]
    if bias is not None:
        wide = jnp.broadcast_to(bias, (n, heads, bias.shape[2], keys)).astype(jnp.float32)
        wide = wide.reshape(n * heads, -1, keys)
        if wide.shape[1] == length and length > 1:
            wide = jnp.pad(wide, ((0, 0), (0, padded), (0, 0))).reshape(-1, blocks, rows, keys)
        else:  # one row for all queries
            wide = jnp.broadcast_to(wide[:, None], (n * heads, blocks, 1, keys))
        arguments.append(wide)

    def one_head(parts: list[Array]) -> Array:
        queries, keys, values, *biases = parts

        def one_block(block: tuple[Array, ...]) -> Array:
            return _attend(block[0], keys, values, *block[1:])

        return lax.map(one_block, (queries, *biases))

    out = lax.map(one_head, arguments)
    out = out.reshape(n, heads, blocks * rows, depth)[:, :, :length]
    return out.transpose(0, 2, 1, 3)


def _attend(q: Array, k: Array, v: Array, bias: Array | None = None) -> Array:
    """Queries ``(R, D)`` to keys and values ``(S, D)``."""
    exact = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    scores = lax.dot_general(
        q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k, (((1,), (1,)), ((), ())),
        precision=exact, preferred_element_type=jnp.float32,
    )  # fmt: skip
    scores = scores if bias is None else scores + bias
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    mixed = lax.dot_general(
        weights.astype(v.dtype), v, (((1,), (0,)), ((), ())),
        precision=exact, preferred_element_type=jnp.float32,
    )  # fmt: skip
    return (mixed / total).astype(v.dtype)
