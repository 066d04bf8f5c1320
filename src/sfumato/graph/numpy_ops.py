"""The operations of `sfumato.graph.ops` on NumPy arrays, in float32.

Feature maps are NHWC, so tokens are the same numbers in another shape. All heavy work is matrix
products (NumPy's BLAS); what lies between is done in blocks that stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.lib.stride_tricks import as_strided

from sfumato.errors import WeightsMismatchError
from sfumato.graph import numpy_functions as functions
from sfumato.graph.ops import Activation
from sfumato.graph.weights import Weights, check_width

Array = np.ndarray[Any, Any]

#: Numbers that are unfolded for a convolution, or scores that attention holds, at a time: 2 MiB.
_BLOCK = 2**19


class NumpyOps:
    """`sfumato.graph.ops.Ops` on arrays in memory. It has no state; weights keep what it makes."""

    # -- numbers from outside -------------------------------------------------------------------

    def constant(self, value: Array) -> Array:
        return value

    def weight(self, layer: Weights, name: str) -> Array:
        return layer.once(name, lambda: _float32(layer[name]))

    def cast(self, x: Array) -> Array:
        return x.astype(np.float32, copy=False)

    def shape(self, x: Array) -> tuple[int, ...]:
        return x.shape

    # -- feature maps ---------------------------------------------------------------------------

    def to_map(self, x: Array) -> Array:
        return np.ascontiguousarray(self.cast(x).transpose(0, 2, 3, 1))

    def from_map(self, x: Array) -> Array:
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))

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
        kernel = cast("tuple[int, Array]", layer.once("conv2d", lambda: self._packed(layer)))
        size, matrix = kernel
        check_width(layer, x.shape[3], matrix.shape[0] // size**2)
        if size == 1 and stride == 1 and not any(padding):
            out = x.reshape(-1, x.shape[3]) @ matrix
            out = out.reshape(*x.shape[:3], -1)
        else:
            out = _convolve(x, matrix, size, stride, padding)
        return self._with_bias(out, layer)

    def group_norm(
        self, x: Array, layer: Weights, groups: int, eps: float, act: Activation | None = None
    ) -> Array:
        weight, bias = self.weight(layer, "weight"), self.weight(layer, "bias")
        check_width(layer, x.shape[3], weight.shape[0])
        out = np.empty_like(x)
        for image, result in zip(x, out, strict=True):
            functions.group_norm(image, weight, bias, groups, eps, result)
        if act is not None:
            functions.ACTIVATIONS[act](out, out)
        return out

    def add_vector(self, x: Array, vector: Array) -> Array:
        return x + vector[:, None, None, :]

    def scale_shift(self, x: Array, scale: Array, shift: Array) -> Array:
        out = x * (1 + scale[:, None, None, :])
        out += shift[:, None, None, :]
        return out

    def concat_maps(self, maps: Sequence[Array]) -> Array:
        return np.concatenate(maps, axis=3)

    def upsample(self, x: Array, height: int, width: int) -> Array:
        _, old_height, old_width, _ = x.shape
        if (height, width) == (2 * old_height, 2 * old_width):
            return x.repeat(2, axis=1).repeat(2, axis=2)
        rows, columns = _nearest(old_height, height), _nearest(old_width, width)
        return x[:, rows][:, :, columns]

    def average_pool(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        pairs = x[:, : height // 2 * 2, : width // 2 * 2]
        pairs = pairs.reshape(n, height // 2, 2, width // 2, 2, channels)
        return pairs.mean(axis=(2, 4), dtype=np.float32)

    # -- maps and plain arrays ------------------------------------------------------------------

    def add(self, a: Array, b: Array | float) -> Array:
        return a + _same_type(b, a)

    def mul(self, a: Array, b: Array | float) -> Array:
        return a * _same_type(b, a)

    def activation(self, x: Array, kind: Activation) -> Array:
        out = np.empty_like(x)
        functions.ACTIVATIONS[kind](x, out)
        return out

    # -- plain arrays ---------------------------------------------------------------------------

    def linear(self, x: Array, layer: Weights) -> Array:
        weight = self.weight(layer, "weight")
        if weight.ndim != 2:  # a 1x1 convolution, as some files have it
            weight = weight.reshape(weight.shape[0], -1)
        check_width(layer, x.shape[-1], weight.shape[1])
        out = x.reshape(-1, x.shape[-1]) @ weight.T
        return self._with_bias(out, layer).reshape(*x.shape[:-1], -1)

    def layer_norm(self, x: Array, layer: Weights, eps: float) -> Array:
        weight, bias = self.weight(layer, "weight"), self.weight(layer, "bias")
        check_width(layer, x.shape[-1], weight.shape[0])
        out = x - x.mean(axis=-1, keepdims=True)
        variance = np.einsum("...c,...c->...", out, out)[..., None] / np.float32(x.shape[-1])
        out *= 1 / np.sqrt(variance + np.float32(eps))
        out *= weight
        out += bias
        return out

    def geglu(self, x: Array) -> Array:
        half = x.shape[-1] // 2
        out = np.empty((*x.shape[:-1], half), x.dtype)
        functions.ACTIVATIONS["gelu"](x[..., half:], out)
        out *= x[..., :half]
        return out

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        heads: int,
        bias: Array | None = None,
        causal: bool = False,
    ) -> Array:
        n, length, _ = q.shape
        keys = k.shape[1]
        if causal:
            lowest = np.full((length, keys), np.finfo(np.float32).min, np.float32)
            hidden = np.triu(lowest, keys - length + 1)[None, None]
            bias = hidden if bias is None else _sum_of_biases(hidden, bias)
        q, k, v = (a.reshape(n, -1, heads, a.shape[-1] // heads).swapaxes(1, 2) for a in (q, k, v))
        q = q * np.float32(q.shape[-1] ** -0.5)
        out = np.empty((n, length, heads, v.shape[-1]), np.float32)
        mixed = out.swapaxes(1, 2)
        rows = max(1, _BLOCK // (n * heads * keys))
        for start in range(0, length, rows):
            part = slice(start, start + rows)
            some = bias if bias is None or bias.shape[2] == 1 else bias[:, :, part]
            mixed[:, :, part] = _attend(q[:, :, part], k, v, some)
        return out.reshape(n, length, -1)

    def embedding(self, ids: Array, layer: Weights) -> Array:
        return _float32(layer["weight"], ids)

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        return np.concatenate(arrays, axis=axis)

    def split(self, x: Array, parts: int) -> list[Array]:
        return np.split(x, parts, axis=-1)

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return x.reshape(tuple(shape))

    def broadcast_to(self, x: Array, shape: Sequence[int]) -> Array:
        return np.broadcast_to(x, tuple(shape))

    def mean(self, x: Array, axis: int) -> Array:
        return x.mean(axis=axis, keepdims=True)

    def sin(self, x: Array) -> Array:
        return np.sin(x)

    def cos(self, x: Array) -> Array:
        return np.cos(x)

    def position_of(self, ids: Array, token: int | None) -> Array:
        return (ids if token is None else ids == token).argmax(axis=1)

    def take(self, x: Array, positions: Array) -> Array:
        return x[np.arange(len(x)), positions]

    # -- inside ---------------------------------------------------------------------------------

    def _with_bias(self, out: Array, layer: Weights) -> Array:
        if "bias" in layer:
            out += self.weight(layer, "bias")
        return out

    def _packed(self, layer: Weights) -> tuple[int, Array]:
        """The kernel's size, and its weights as a matrix ``(size * size * in, out)``."""
        weight = self.weight(layer, "weight")
        if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
            raise WeightsMismatchError(
                f"'{layer.path('weight')}' has the shape {weight.shape}, which is no convolution."
            )
        matrix = weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])
        return weight.shape[2], np.ascontiguousarray(matrix)


def _float32(value: Any, rows: Array | None = None) -> Array:
    """A weight, or some rows of it, as float32; see `sfumato.checkpoints.arrays.StoredTensor`."""
    convert: Callable[[Array | None], Array] | None = getattr(value, "float32", None)
    if convert is not None:
        return convert(rows)
    array = np.asarray(value)
    return (array if rows is None else array[rows]).astype(np.float32, copy=False)


def _same_type(b: Array | float, a: Array) -> Any:
    return b if isinstance(b, np.ndarray) else a.dtype.type(b)


def _nearest(old: int, new: int) -> Array:
    """The old pixel of every new one."""
    scale = np.float32(old) / np.float32(new)
    return np.minimum((np.arange(new, dtype=np.float32) * scale).astype(np.int64), old - 1)


def _convolve(
    x: Array, matrix: Array, size: int, stride: int, padding: tuple[int, int, int, int]
) -> Array:
    """Unfold some rows of the picture at a time and multiply them by the kernel."""
    above, below, left, right = padding
    x = np.pad(x, ((0, 0), (above, below), (left, right), (0, 0))) if any(padding) else x
    x = np.ascontiguousarray(x)
    n, height, width, channels = x.shape
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    s0, s1, s2, s3 = x.strides
    # One row of a window is contiguous: its pixels lie side by side with all their channels.
    windows = as_strided(
        x,
        (n, rows, columns, size, size * channels),
        (s0, s1 * stride, s2 * stride, s1, s3),
        writeable=False,
    )
    out = np.empty((n, rows, columns, matrix.shape[1]), np.float32)
    step = max(1, _BLOCK // (columns * matrix.shape[0]))
    if step >= rows:  # small maps: several pictures in one product
        np.matmul(windows.reshape(-1, matrix.shape[0]), matrix, out=out.reshape(-1, out.shape[3]))
        return out
    for image, result in zip(windows, out, strict=True):
        for start in range(0, rows, step):
            part = image[start : start + step].reshape(-1, matrix.shape[0])
            np.matmul(part, matrix, out=result[start : start + step].reshape(len(part), -1))
    return out


def _attend(q: Array, k: Array, v: Array, bias: Array | None) -> Array:
    """Attention ``(N, heads, L, D)`` of queries that are scaled already."""
    scores = q @ k.swapaxes(2, 3)
    if bias is not None:
        scores += bias
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    mixed = scores @ v
    mixed /= scores.sum(axis=-1, keepdims=True)
    return mixed


def _sum_of_biases(a: Array, b: Array) -> Array:
    with np.errstate(over="ignore"):  # two lowest numbers make minus infinity, which is meant
        return a + b
