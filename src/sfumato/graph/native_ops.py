"""The operations of `sfumato.graph.numpy_ops` with the compiled kernels where there are any.

A package without the compiled library computes with NumPy alone; see `sfumato.native`.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from sfumato.graph.numpy_ops import NumpyOps
from sfumato.graph.ops import Activation
from sfumato.graph.weights import Weights, check_width
from sfumato.native import attention, layers, pointwise
from sfumato.native.attention import Strided

Array = np.ndarray[Any, Any]

#: Rows and columns of a product below which NumPy computes it.
_LEAST_ROWS, _LEAST_COLUMNS = 8, 16
#: Functions that the library has for arrays.
_ACTIVATIONS = ("silu", "gelu", "quick_gelu")


class NativeOps(NumpyOps):
    """`NumpyOps` by the compiled kernels.

    Args:
        threads: how many to use at the most.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def conv2d(
        self,
        x: Array,
        layer: Weights,
        *,
        stride: int = 1,
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> Array:
        weight = self.weight(layer, "weight")
        if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
            return super().conv2d(x, layer, stride=stride, padding=padding)
        columns, channels, size, _ = weight.shape
        pixels = len(x) * x.shape[1] * x.shape[2] // stride**2
        if pixels < _LEAST_ROWS or columns < _LEAST_COLUMNS:
            return super().conv2d(x, layer, stride=stride, padding=padding)
        check_width(layer, x.shape[3], channels)
        bias = self._bias(layer)
        around = padding[0] if len(set(padding)) == 1 else 0
        x = _ready(x)
        if any(padding) and not around:
            above, below, left, right = padding
            x = np.pad(x, ((0, 0), (above, below), (left, right), (0, 0)))
        tile = 0
        if size == 3 and stride == 1 and around == 1:
            tile = layers.tile_size(channels, columns, x.shape[1] * x.shape[2])
        if tile:
            packed = layer.once(
                f"tiles of {tile}", lambda: layers.pack_tiles(weight, tile, self._threads)
            )
            return layers.convolve_in_tiles(x, packed, bias, columns, tile, self._threads)
        packed = layer.once("panels", lambda: layers.pack(weight, self._threads))
        return layers.convolve(x, packed, bias, columns, size, stride, self._threads, around)

    def linear(self, x: Array, layer: Weights) -> Array:
        weight = self.weight(layer, "weight")
        columns, length = weight.shape[:2]
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) < _LEAST_ROWS or columns < _LEAST_COLUMNS:
            return super().linear(x, layer)
        check_width(layer, x.shape[-1], length)
        packed = layer.once(
            "panels", lambda: layers.pack(weight.reshape(columns, length), self._threads)
        )
        out = layers.linear(rows, packed, self._bias(layer), columns, self._threads)
        return out.reshape(*x.shape[:-1], columns)

    def group_norm(
        self, x: Array, layer: Weights, groups: int, eps: float, act: Activation | None = None
    ) -> Array:
        weight, bias = self.weight(layer, "weight"), self.weight(layer, "bias")
        check_width(layer, x.shape[3], weight.shape[0])
        x = _ready(x)
        out = np.empty_like(x)
        n, height, width, channels = x.shape
        pointwise.group_norm(
            "float32",
            x.ctypes.data,
            out.ctypes.data,
            weight.ctypes.data,
            bias.ctypes.data,
            batch=n,
            pixels=height * width,
            channels=channels,
            groups=groups,
            eps=eps,
            silu=act == "silu",
            threads=self._threads,
        )
        return out if act in (None, "silu") else self.activation(out, act)

    def layer_norm(self, x: Array, layer: Weights, eps: float) -> Array:
        weight, bias = self.weight(layer, "weight"), self.weight(layer, "bias")
        check_width(layer, x.shape[-1], weight.shape[0])
        x = _ready(x)
        out = np.empty_like(x)
        pointwise.layer_norm(
            "float32",
            x.ctypes.data,
            out.ctypes.data,
            weight.ctypes.data,
            bias.ctypes.data,
            rows=x.size // x.shape[-1],
            channels=x.shape[-1],
            eps=eps,
            threads=self._threads,
        )
        return out

    def activation(self, x: Array, kind: Activation) -> Array:
        if kind not in _ACTIVATIONS:
            return super().activation(x, kind)
        x = _ready(x)
        out = np.empty_like(x)
        source, target = x.ctypes.data, out.ctypes.data
        pointwise.activate(
            "float32", source, target, count=x.size, kind=cast(Any, kind), threads=self._threads
        )
        return out

    def geglu(self, x: Array) -> Array:
        x = _ready(x)
        half = x.shape[-1] // 2
        out = np.empty((*x.shape[:-1], half), np.float32)
        pointwise.geglu(
            "float32",
            x.ctypes.data,
            out.ctypes.data,
            rows=out.size // half,
            channels=half,
            threads=self._threads,
        )
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
        if bias is not None:
            return super().attention(q, k, v, heads, bias, causal)
        q, k, v = _ready(q), _ready(k), _ready(v)
        out = np.empty((*q.shape[:2], v.shape[2]), np.float32)
        attention.attend(
            _by_head(q, heads),
            _by_head(k, heads),
            _by_head(v, heads),
            _by_head(out, heads),
            None,
            scale=(q.shape[2] // heads) ** -0.5,
            causal=causal,
            threads=self._threads,
        )
        return out

    def _bias(self, layer: Weights) -> Array | None:
        return self.weight(layer, "bias") if "bias" in layer else None


def _ready(x: Array) -> Array:
    return np.ascontiguousarray(x, np.float32)


def _by_head(tokens: Array, heads: int) -> Strided:
    """Tokens ``(N, L, heads * D)`` as the kernel wants them: ``(N, heads, L, D)``."""
    n, length, width = tokens.shape
    each = width // heads
    strides = (length * width, each, width, 1)
    return Strided(tokens.ctypes.data, "float32", (n, heads, length, each), strides)
