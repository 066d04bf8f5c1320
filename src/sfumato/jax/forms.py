"""How each heavy operation is computed, on each kind of device: chosen by measurement.

On processors with kernels for them (`sfumato.jax.kernels`) those compute; elsewhere on processors
XLA does, in the form that was the fastest; on accelerators XLA computes what it knows as one
operation. ``python -m benchmarks.jax_forms`` measures the forms beside each other.

Every function is compiled on its own, so that without ``jit`` around them each shape is compiled
once, and in a program equal layers share their code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from sfumato.jax import kernels
from sfumato.jax.attention import attention as plain_attention
from sfumato.native.layers import LARGE_TILE_WEIGHTS
from sfumato.native.library import multiplied_as

_AXES = ("NHWC", "OIHW", "NHWC")
#: Below these a kernel's call costs more than it saves: multiplications, channels, rows.
_LEAST_WORK, _LEAST_CHANNELS, _LEAST_ROWS = 2**20, 16, 64
#: Pixels in a batch up to which 3x3 convolutions take no tiles, and smaller ones.
_LEAST_PIXELS, _LARGE_TILE_PIXELS = 128, 1024


def _chosen(kernel: Callable[..., Any], plain: Callable[..., Any], *arrays: Array) -> Any:
    """``kernel`` on processors, ``plain`` elsewhere and for derivatives."""

    @jax.custom_jvp
    def computed(*arrays: Array) -> Any:
        return lax.platform_dependent(*arrays, cpu=kernel, default=plain)

    @computed.defjvp
    def derived(primals: Any, tangents: Any) -> Any:
        return computed(*primals), jax.jvp(plain, primals, tangents)[1]

    return computed(*arrays)


def _precision(x: Array) -> Any:
    """Exact products in float32: TPUs and GPUs would otherwise round their factors."""
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


@partial(jax.jit, static_argnames=("stride", "padding"))
def convolve(
    x: Array,
    weight: Array,
    bias: Array | None,
    *,
    stride: int = 1,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Array:
    """``(N, H, W, C)`` by ``(O, C, k, k)`` to ``(N, H', W', O)``.

    Args:
        x, weight, bias: of the network's type.
        stride: of both axes.
        padding: above, below, left, right.
    """
    above, below, left, right = padding

    def plain(x: Array, weight: Array, *bias: Array) -> Array:
        out = lax.conv_general_dilated(
            x, weight, (stride, stride), ((above, below), (left, right)),
            dimension_numbers=_AXES, precision=_precision(x),
        )  # fmt: skip
        return out + bias[0] if bias else out

    arrays = (x, weight) if bias is None else (x, weight, bias)
    columns, channels, *kernel = weight.shape
    pixels = x.shape[0] * x.shape[1] * x.shape[2] // stride**2
    work = pixels * channels * columns * kernel[0] * kernel[1]
    small = min(channels, columns) < _LEAST_CHANNELS or work < _LEAST_WORK
    if small or kernel[0] != kernel[1] or not kernels.usable(*arrays):
        return plain(*arrays)
    even = len(set(padding)) == 1
    tile = _tile(pixels, channels, columns, x.dtype) if kernel[0] == 3 and stride == 1 else 0
    tile = tile if padding == (1, 1, 1, 1) else 0

    def by_kernel(x: Array, weight: Array, *bias: Array) -> Array:
        if not even:
            x = jnp.pad(x, ((0, 0), (above, below), (left, right), (0, 0)))
        return kernels.convolve(
            x, weight, bias[0] if bias else None,
            tile=tile, stride=stride, padding=above if even else 0,
        )  # fmt: skip

    return _chosen(by_kernel, plain, *arrays)


def _tile(pixels: int, channels: int, columns: int, dtype: Any) -> int:
    """The tile size for Winograd's method, 0 for the direct way."""
    if pixels < _LEAST_PIXELS:
        return 0
    large = pixels >= _LARGE_TILE_PIXELS and channels * columns <= LARGE_TILE_WEIGHTS
    return 6 if large and multiplied_as(str(dtype)) == "float32" else 4


@jax.jit
def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """``(..., C)`` by ``(O, C)``, which may have two more axes of 1, to ``(..., O)``."""

    def plain(x: Array, weight: Array, *bias: Array) -> Array:
        matrix = weight.reshape(weight.shape[:2])
        axes = (((x.ndim - 1,), (1,)), ((), ()))
        # XLA's processor code has products of bfloat16 only with sums in float32.
        out = lax.dot_general(
            x, matrix, axes, precision=_precision(x), preferred_element_type=jnp.float32
        ).astype(x.dtype)
        return out + bias[0] if bias else out

    arrays = (x, weight) if bias is None else (x, weight, bias)
    columns, channels = weight.shape[:2]
    rows = x.size // channels
    small = min(channels, columns) < _LEAST_CHANNELS or rows < _LEAST_ROWS
    if small or rows * channels * columns < _LEAST_WORK:
        return plain(*arrays)
    if not kernels.usable(*arrays):
        return plain(*arrays)

    def by_kernel(x: Array, weight: Array, *bias: Array) -> Array:
        return kernels.linear(x, weight, bias[0] if bias else None)

    return _chosen(by_kernel, plain, *arrays)


@partial(jax.jit, static_argnames=("heads", "causal"))
def attention(
    q: Array, k: Array, v: Array, bias: Array | None, *, heads: int, causal: bool
) -> Array:
    """Softmax attention; arguments as of `sfumato.graph.ops.Ops.attention`."""
    arrays = (q, k, v) if bias is None else (q, k, v, bias)

    def plain(q: Array, k: Array, v: Array, *bias: Array) -> Array:
        return plain_attention(q, k, v, heads, bias[0] if bias else None, causal)

    shifted = causal and q.shape[1] != k.shape[1]  # which the kernels count from the first key
    if shifted or not kernels.usable(q, k, v) or (bias is not None and bias.ndim != 4):
        return plain(*arrays)

    def by_kernel(q: Array, k: Array, v: Array, *bias: Array) -> Array:
        return kernels.attention(q, k, v, bias[0] if bias else None, heads=heads, causal=causal)

    return _chosen(by_kernel, plain, *arrays)


@partial(jax.jit, static_argnames=("groups", "eps", "silu"))
def group_norm(
    x: Array, weight: Array, bias: Array, *, groups: int, eps: float, silu: bool
) -> Array:
    """Normalise groups of channels of ``(N, H, W, C)``, in float32; then SiLU if asked for."""

    def plain(x: Array, weight: Array, bias: Array) -> Array:
        n, height, width, channels = x.shape
        grouped = x.astype(jnp.float32).reshape(n, height * width, groups, channels // groups)
        mean = grouped.mean(axis=(1, 3), keepdims=True)
        variance = jnp.square(grouped - mean).mean(axis=(1, 3), keepdims=True)
        normal = ((grouped - mean) * lax.rsqrt(variance + eps)).reshape(x.shape)
        out = normal * weight + bias
        return (jax.nn.silu(out) if silu else out).astype(x.dtype)

    if x.shape[3] < _LEAST_CHANNELS or not kernels.usable(x, weight, bias):
        return plain(x, weight, bias)
    by_kernel = partial(kernels.group_norm, groups=groups, eps=eps, silu=silu)
    return _chosen(by_kernel, plain, x, weight, bias)


@jax.jit
def geglu(x: Array) -> Array:
    """``(..., 2 C)`` to ``(..., C)``: the first half times the exact GELU of the second."""

    def plain(x: Array) -> Array:
        value, gate = jnp.split(x, 2, axis=-1)
        return value * jax.nn.gelu(gate, approximate=False)

    if x.size < _LEAST_WORK // 16 or not kernels.usable(x):
        return plain(x)
    return _chosen(kernels.geglu, plain, x)
