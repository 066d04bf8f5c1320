"""The operations of `sfumato.graph.ops` as nodes of an OpenVINO graph.

Feature maps are NCHW. The graph is written in float32; the plugin computes in the type that it is
told when it compiles. Arrays that do not depend on the graph stay outside: see `early`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import openvino as ov
from openvino import opset13 as nodes

from sfumato.errors import WeightsMismatchError
from sfumato.graph.numpy_ops import NumpyOps
from sfumato.graph.ops import Activation
from sfumato.graph.weights import Weights
from sfumato.runtime.openvino.constants import tensor_of
from sfumato.runtime.openvino.early import Early, constant, early

Array = np.ndarray[Any, Any]
#: A value in the graph, or one that is known before it runs.
Value: TypeAlias = "ov.Output | Early"

_NUMPY = NumpyOps()

#: The plugin makes kernels for chains of element-wise nodes, which saves some 6% of the time; this
#: turns it off for a graph with chains that it fails at.
WITHOUT_GENERATED_KERNELS = {"SNIPPETS_MODE": "DISABLE"}

ACTIVATIONS: dict[Activation, Callable[[ov.Output], Any]] = {
    "silu": nodes.swish,
    "gelu": lambda x: nodes.gelu(x, "ERF"),
    "gelu_tanh": lambda x: nodes.gelu(x, "TANH"),
    "quick_gelu": lambda x: nodes.swish(x, nodes.constant(np.float32(1.702))),
    "relu": nodes.relu,
    "relu6": lambda x: nodes.clamp(x, 0.0, 6.0),
    "leaky_relu": lambda x: nodes.prelu(x, nodes.constant(np.array([0.01], np.float32))),
    "mish": nodes.mish,
    "tanh": nodes.tanh,
    "sigmoid": nodes.sigmoid,
}


class OpenVinoOps:
    """Builds one graph.

    Attributes:
        parameters: the graph's inputs, in the order in which they were met.
        sources: for each of them what is computed of the caller's inputs.
        properties: what the plugin has to be told about the graph.

    Args:
        low_rank: by the path of a layer the factors ``(rank, in)`` and ``(out, rank)`` whose
            product is added to its weight. Linear layers and 1x1 convolutions have them.
    """

    def __init__(self, low_rank: Mapping[str, tuple[Value, Value]] | None = None) -> None:
        self._low_rank = low_rank or {}
        self.parameters: list[Any] = []
        self.sources: list[Early] = []
        self.properties: dict[str, Any] = {}
        self._nodes: dict[int, ov.Output] = {}

    def node(self, x: Value) -> ov.Output:
        """``x`` in the graph: a number known early becomes a constant or an input."""
        if not isinstance(x, Early):
            return x
        if id(x) not in self._nodes:
            if x.fixed:
                return nodes.constant(x.example).output(0)
            made = nodes.parameter(x.example.shape, x.example.dtype)
            self.parameters.append(made)
            self.sources.append(x)  # which keeps it alive, as its id is the key
            self._nodes[id(x)] = made.output(0)
        return self._nodes[id(x)]

    # -- numbers from outside -------------------------------------------------------------------

    def constant(self, value: Array) -> Value:
        return constant(value)

    def weight(self, layer: Weights, name: str) -> Value:
        return constant(_NUMPY.weight(layer, name))

    def cast(self, x: Value) -> Value:
        if isinstance(x, Early):
            x = early(_NUMPY.cast, x)
        return self.node(x)

    def shape(self, x: Value) -> tuple[int, ...]:
        return x.example.shape if isinstance(x, Early) else tuple(x.get_shape())

    # -- feature maps ---------------------------------------------------------------------------

    def to_map(self, x: Value) -> Value:
        return self.cast(x)

    def from_map(self, x: Value) -> Value:
        return x

    def map_shape(self, x: Value) -> tuple[int, int, int, int]:
        n, channels, height, width = self.shape(x)
        return n, channels, height, width

    def tokens(self, x: Value) -> Value:
        n, channels, _, _ = self.map_shape(x)
        return _transpose(_reshape(self.node(x), (n, channels, -1)), (0, 2, 1))

    def map_of_tokens(self, tokens: Value, height: int, width: int) -> Value:
        n, _, channels = self.shape(tokens)
        return _reshape(_transpose(self.node(tokens), (0, 2, 1)), (n, channels, height, width))

    def conv2d(
        self,
        x: Value,
        layer: Weights,
        *,
        stride: int = 1,
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> Value:
        above, below, left, right = padding
        weight = self._stored(layer, "weight")
        _check_width(layer, self.shape(x)[1], weight.get_shape()[1])
        out = nodes.convolution(
            self.node(x), weight, [stride, stride], [above, left], [below, right], [1, 1]
        )
        made = self._with_bias(out.output(0), layer, (1, -1, 1, 1))
        if layer.prefix not in self._low_rank:
            return made
        _, _, height, width = self.map_shape(x)
        change = self._low_rank_change(self.tokens(x), layer)
        return self.add(made, self.map_of_tokens(change, height, width))

    def group_norm(
        self, x: Value, layer: Weights, groups: int, eps: float, act: Activation | None = None
    ) -> Value:
        weight, bias = self._vector(layer, "weight"), self._vector(layer, "bias")
        _check_width(layer, self.shape(x)[1], weight.get_shape()[0])
        out = nodes.group_normalization(self.node(x), weight, bias, groups, eps).output(0)
        return out if act is None else self.activation(out, act)

    def add_vector(self, x: Value, vector: Value) -> Value:
        return self.add(x, _reshape(self.node(vector), (*self.shape(vector), 1, 1)))

    def scale_shift(self, x: Value, scale: Value, shift: Value) -> Value:
        # As part of a generated kernel this crashes, or is wrong in bfloat16 (2026.4).
        self.properties |= WITHOUT_GENERATED_KERNELS
        more = _reshape(self.node(scale), (*self.shape(scale), 1, 1))
        return self.add_vector(self.mul(x, self.add(more, 1.0)), shift)

    def concat_maps(self, maps: Sequence[Value]) -> Value:
        return self.concat(maps, 1)

    def upsample(self, x: Value, height: int, width: int) -> Value:
        _, _, old_height, old_width = self.map_shape(x)
        if (height, width) == (2 * old_height, 2 * old_width):
            scales = nodes.constant(np.array([2, 2], np.float32))
            axes = nodes.constant(np.array([2, 3], np.int32))
            return nodes.interpolate(
                self.node(x),
                scales,
                "nearest",
                "scales",
                axes=axes,
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            ).output(0)
        x = _gather(self.node(x), _nearest(old_height, height), 2)
        return _gather(x, _nearest(old_width, width), 3)

    def average_pool(self, x: Value) -> Value:
        pooled = nodes.avg_pool(self.node(x), [2, 2], [0, 0], [0, 0], [2, 2], True)
        return pooled.output(0)

    # -- maps and plain arrays ------------------------------------------------------------------

    def add(self, a: Value, b: Value | float) -> Value:
        return self._both(np.add, nodes.add, a, b)

    def mul(self, a: Value, b: Value | float) -> Value:
        return self._both(np.multiply, nodes.multiply, a, b)

    def activation(self, x: Value, kind: Activation) -> Value:
        if kind == "mish":  # fails to compile as part of a generated kernel (2026.4)
            self.properties |= WITHOUT_GENERATED_KERNELS
        return ACTIVATIONS[kind](self.node(x)).output(0)

    # -- plain arrays ---------------------------------------------------------------------------

    def linear(self, x: Value, layer: Weights) -> Value:
        weight = self._stored(layer, "weight", flat=True)
        _check_width(layer, self.shape(x)[-1], weight.get_shape()[1])
        out = nodes.matmul(self.node(x), weight, False, True).output(0)
        made = self._with_bias(out, layer, (1,) * (len(self.shape(x)) - 1) + (-1,))
        if layer.prefix not in self._low_rank:
            return made
        return self.add(made, self._low_rank_change(x, layer))

    def layer_norm(self, x: Value, layer: Weights, eps: float) -> Value:
        weight, bias = self._vector(layer, "weight"), self._vector(layer, "bias")
        _check_width(layer, self.shape(x)[-1], weight.get_shape()[0])
        axes = nodes.constant(np.array([-1], np.int64))
        out = nodes.mvn(self.node(x), axes, True, eps, "inside_sqrt")
        return nodes.add(nodes.multiply(out, weight), bias).output(0)

    def geglu(self, x: Value) -> Value:
        value, gate = self.split(x, 2)
        return self.mul(value, self.activation(gate, "gelu"))

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        heads: int,
        bias: Value | None = None,
        causal: bool = False,
    ) -> Value:
        length, keys, width = self.shape(q)[1], self.shape(k)[1], self.shape(q)[2] // heads
        if causal:
            lowest = np.full((length, keys), np.finfo(np.float32).min, np.float32)
            mask = constant(np.triu(lowest, keys - length + 1)[None, None])
            bias = mask if bias is None else self._both(_sum_of_biases, nodes.add, bias, mask)
        q, k, v = (self._heads(x, heads) for x in (q, k, v))
        # The plugin's attention node is no faster than this, and scaled queries are less exact.
        scaled = self.mul(k, width**-0.5)
        scores = nodes.matmul(self.node(q), self.node(scaled), False, True).output(0)
        if bias is not None:
            scores = nodes.add(scores, self.node(bias)).output(0)
        mixed = nodes.matmul(nodes.softmax(scores, 3), self.node(v), False, False)
        n = self.shape(q)[0]
        return _reshape(_transpose(mixed.output(0), (0, 2, 1, 3)), (n, length, heads * width))

    def embedding(self, ids: Value, layer: Weights) -> Value:
        return _gather(self._stored(layer, "weight"), self.node(ids), 0)

    def concat(self, arrays: Sequence[Value], axis: int) -> Value:
        if all(isinstance(x, Early) for x in arrays):
            return early(lambda *parts: np.concatenate(parts, axis), *arrays)  # pyright: ignore[reportArgumentType]
        return nodes.concat([self.node(x) for x in arrays], axis).output(0)

    def split(self, x: Value, parts: int) -> list[Value]:
        axis = nodes.constant(np.int64(len(self.shape(x)) - 1))
        return list(nodes.split(self.node(x), axis, parts).outputs())

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        if isinstance(x, Early):
            return early(lambda value: value.reshape(tuple(shape)), x)
        return _reshape(x, shape)

    def broadcast_to(self, x: Value, shape: Sequence[int]) -> Value:
        return nodes.broadcast(self.node(x), nodes.constant(np.array(shape, np.int64))).output(0)

    def mean(self, x: Value, axis: int) -> Value:
        return nodes.reduce_mean(self.node(x), nodes.constant(np.int64(axis)), True).output(0)

    def sin(self, x: Value) -> Value:
        return early(np.sin, x) if isinstance(x, Early) else nodes.sin(x).output(0)

    def cos(self, x: Value) -> Value:
        return early(np.cos, x) if isinstance(x, Early) else nodes.cos(x).output(0)

    def position_of(self, ids: Value, token: int | None) -> Value:
        assert isinstance(ids, Early), "ids come from outside"
        return early(lambda value: _NUMPY.position_of(value, token), ids)

    def take(self, x: Value, positions: Value) -> Value:
        axis = nodes.constant(np.int64(1))
        return nodes.gather(self.node(x), self.node(positions), axis, 1).output(0)

    # -- inside ---------------------------------------------------------------------------------

    def _both(
        self, with_numpy: Callable[..., Array], node: Callable[..., Any], a: Value, b: Any
    ) -> Value:
        """A function of two values, of which the second may be a number."""
        if not isinstance(b, Early | ov.Output):
            b = constant(np.asarray(b, np.float32))
        if isinstance(a, Early) and isinstance(b, Early):
            return early(with_numpy, a, b)
        return node(self.node(a), self.node(b)).output(0)

    def _low_rank_change(self, x: Value, layer: Weights) -> Value:
        """What the factors of a layer add to its output."""
        down, up = self._low_rank[layer.prefix]
        inner = nodes.matmul(self.node(x), self.node(down), False, True)
        return nodes.matmul(inner, self.node(up), False, True).output(0)

    def _heads(self, x: Value, heads: int) -> Value:
        n, length, width = self.shape(x)
        return _transpose(_reshape(self.node(x), (n, length, heads, width // heads)), (0, 2, 1, 3))

    def _stored(self, layer: Weights, name: str, flat: bool = False) -> ov.Output:
        """A weight in the type that it is stored in, then as float32.

        The mark on the conversion is what files of OpenVINO's have: the plugin packs the stored
        numbers and makes no copy in float32, which would double its memory. ``flat`` sees the
        weight of a 1x1 convolution as a matrix.
        """

        def make() -> ov.Output:
            tensor = tensor_of(layer[name])
            if flat and len(tensor.shape) > 2:
                tensor = tensor_of(layer[name], (tensor.shape[0], tensor.size // tensor.shape[0]))
            made = ov.op.Constant(tensor, shared_memory=True)
            if made.get_element_type() == ov.Type.f32:
                return made.output(0)
            wide = nodes.convert(made, "f32")
            wide.get_rt_info()["decompression_0"] = ""
            return wide.output(0)

        return layer.once(f"openvino {name} {flat}", make)

    def _vector(self, layer: Weights, name: str) -> ov.Output:
        return layer.once(
            f"openvino vector {name}",
            lambda: nodes.constant(_NUMPY.weight(layer, name)).output(0),
        )

    def _with_bias(self, out: ov.Output, layer: Weights, shape: tuple[int, ...]) -> ov.Output:
        if "bias" not in layer:
            return out
        return nodes.add(out, nodes.constant(_NUMPY.weight(layer, "bias").reshape(shape))).output(0)


def _sum_of_biases(a: Array, b: Array) -> Array:
    with np.errstate(over="ignore"):  # two lowest numbers make minus infinity, which is meant
        return a + b


def _reshape(x: ov.Output, shape: Sequence[int]) -> ov.Output:
    return nodes.reshape(x, nodes.constant(np.array(shape, np.int64)), False).output(0)


def _transpose(x: ov.Output, order: Sequence[int]) -> ov.Output:
    return nodes.transpose(x, nodes.constant(np.array(order, np.int64))).output(0)


def _gather(x: ov.Output, indices: Any, axis: int) -> ov.Output:
    return nodes.gather(x, indices, nodes.constant(np.int64(axis))).output(0)


def _nearest(old: int, new: int) -> Any:
    """The old pixel of every new one, as a constant."""
    scale = np.float32(old) / np.float32(new)
    pixels = (np.arange(new, dtype=np.float32) * scale).astype(np.int64)
    return nodes.constant(np.minimum(pixels, old - 1))


def _check_width(layer: Weights, width: int, wanted: int) -> None:
    if width != wanted:
        raise WeightsMismatchError(
            f"The layer '{layer.prefix}' takes {wanted} channels but is given {width}: the weights"
            " are not those of the configuration, or an input is not what they are made for."
        )
