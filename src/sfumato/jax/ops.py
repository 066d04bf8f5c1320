"""The operations of `sfumato.graph.ops` in JAX, for tracing, ``jit``, ``grad`` and sharding.

Feature maps are NHWC, which suits XLA's convolutions on processors and TPUs alike. Weights are
leaves of a flat dictionary under diffusers' names, in the shapes that the files have. What takes
the time is in `sfumato.jax.forms`, which knows how to compute it on each kind of device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sfumato.errors import InputError
from sfumato.graph.ops import Activation
from sfumato.graph.weights import Weights, check_width
from sfumato.jax import forms

ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.01),
    "mish": jax.nn.mish,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}


def floating_type(dtype: Any) -> Any:
    """A type to compute in; None is float32.

    Raises:
        InputError: it is none.
    """
    try:
        found = jax.dtypes.canonicalize_dtype(jnp.float32 if dtype is None else dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating) or found.itemsize < 2:
        raise InputError(
            f"`dtype` has to be one of jnp.float32, jnp.bfloat16 and jnp.float16 but is"
            f" {str(dtype)[:80]!r}."
        )
    return found


class JaxOps:
    """`sfumato.graph.ops.Ops` on traced or concrete JAX arrays.

    Args:
        dtype: the networks' type. In float32 products are exact on every device; TPUs and GPUs
            would otherwise round their factors.
    """

    def __init__(self, dtype: Any = jnp.float32) -> None:
        self.dtype = floating_type(dtype)

    # -- numbers from outside -------------------------------------------------------------------

    def constant(self, value: np.ndarray[Any, Any]) -> Array:
        return jnp.asarray(value)

    def weight(self, layer: Weights, name: str) -> Array:
        return self.cast(jnp.asarray(layer[name]))

    def cast(self, x: Array) -> Array:
        return x.astype(self.dtype)

    def shape(self, x: Array) -> tuple[int, ...]:
        return x.shape

    # -- feature maps ---------------------------------------------------------------------------

    def to_map(self, x: Array) -> Array:
        return self.cast(x).transpose(0, 2, 3, 1)

    def from_map(self, x: Array) -> Array:
        return x.transpose(0, 3, 1, 2)

    def map_shape(self, x: Array) -> tuple[int, int, int, int]:
        n, height, width, channels = x.shape
        return n, channels, height, width

    def tokens(self, x: Array) -> Array:
        return x.reshape(x.shape[0], -1, x.shape[3])

    def map_of_tokens(self, tokens: Array, height: int, width: int) -> Array:
        return tokens.reshape(tokens.shape[0], height, width, -1)

    def conv2d(
        self,
        x: Array,
        layer: Weights,
        *,
        stride: int = 1,
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> Array:
        weight = self.weight(layer, "weight")
        check_width(layer, x.shape[3], weight.shape[1])
        return forms.convolve(x, weight, self._bias(layer), stride=stride, padding=padding)

    def group_norm(
        self, x: Array, layer: Weights, groups: int, eps: float, act: Activation | None = None
    ) -> Array:
        weight, bias = (self.weight(layer, name) for name in ("weight", "bias"))
        check_width(layer, x.shape[3], weight.shape[0])
        silu = act == "silu"
        out = forms.group_norm(x, weight, bias, groups=groups, eps=eps, silu=silu)
        return out if act is None or silu else ACTIVATIONS[act](out)

    def add_vector(self, x: Array, vector: Array) -> Array:
        return x + vector[:, None, None, :]

    def scale_shift(self, x: Array, scale: Array, shift: Array) -> Array:
        return x * (1 + scale[:, None, None, :]) + shift[:, None, None, :]

    def concat_maps(self, maps: Sequence[Array]) -> Array:
        return jnp.concatenate(maps, axis=3)

    def upsample(self, x: Array, height: int, width: int) -> Array:
        _, old_height, old_width, _ = x.shape
        if (height, width) == (2 * old_height, 2 * old_width):
            return x.repeat(2, axis=1).repeat(2, axis=2)
        return x[:, _nearest(old_height, height)][:, :, _nearest(old_width, width)]

    def average_pool(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        pairs = x[:, : height // 2 * 2, : width // 2 * 2]
        pairs = pairs.reshape(n, height // 2, 2, width // 2, 2, channels)
        return pairs.mean(axis=(2, 4), dtype=jnp.float32).astype(x.dtype)

    # -- maps and plain arrays ------------------------------------------------------------------

    def add(self, a: Array, b: Array | float) -> Array:
        return a + b

    def mul(self, a: Array, b: Array | float) -> Array:
        return a * b

    def activation(self, x: Array, kind: Activation) -> Array:
        return ACTIVATIONS[kind](x)

    # -- plain arrays ---------------------------------------------------------------------------

    def linear(self, x: Array, layer: Weights) -> Array:
        weight = self.weight(layer, "weight")
        check_width(layer, x.shape[-1], weight.shape[1])
        return forms.linear(x, weight, self._bias(layer))

    def layer_norm(self, x: Array, layer: Weights, eps: float) -> Array:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        weight, bias = (self.weight(layer, name) for name in ("weight", "bias"))
        check_width(layer, x.shape[-1], weight.shape[0])
        return (centred * lax.rsqrt(variance + eps) * weight + bias).astype(x.dtype)

    def geglu(self, x: Array) -> Array:
        return forms.geglu(x)

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        heads: int,
        bias: Array | None = None,
        causal: bool = False,
    ) -> Array:
        return forms.attention(q, k, v, bias, heads=heads, causal=causal)

    def embedding(self, ids: Array, layer: Weights) -> Array:
        return self.cast(jnp.asarray(layer["weight"])[ids])

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        return jnp.concatenate(arrays, axis=axis)

    def split(self, x: Array, parts: int) -> list[Array]:
        return jnp.split(x, parts, axis=-1)

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return x.reshape(tuple(shape))

    def broadcast_to(self, x: Array, shape: Sequence[int]) -> Array:
        return jnp.broadcast_to(x, tuple(shape))

    def mean(self, x: Array, axis: int) -> Array:
        return x.mean(axis=axis, keepdims=True)

    def sin(self, x: Array) -> Array:
        return jnp.sin(x)

    def cos(self, x: Array) -> Array:
        return jnp.cos(x)

    def position_of(self, ids: Array, token: int | None) -> Array:
        return (ids if token is None else ids == token).argmax(axis=1)

    def take(self, x: Array, positions: Array) -> Array:
        return x[jnp.arange(x.shape[0]), positions]

    # -- inside ---------------------------------------------------------------------------------

    def _bias(self, layer: Weights) -> Array | None:
        return self.weight(layer, "bias") if "bias" in layer else None


def _nearest(old: int, new: int) -> np.ndarray[Any, Any]:
    """Which old pixel each new one repeats; the quotient is float32, as in torch."""
    scale = np.float32(old) / np.float32(new)
    places = np.floor(np.arange(new, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(places, old - 1)
