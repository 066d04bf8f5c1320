"""The operations that the networks of this folder are written with.

A backend implements `Ops` in one class. It may compute at once (NumPy), trace (JAX) or build a
graph (OpenVINO); the networks do not see the difference, because they never look at a number, only
at shapes.

There are two kinds of arrays, both of the backend's one type ``A``:

* *Plain arrays* have the usual order of axes: tokens ``(N, L, C)``, vectors ``(N, C)``, ids
  ``(N, L)``. Their shapes are known and `shape` returns them.
* *Feature maps* have a batch, channels, a height and a width **in whatever memory layout the
  backend likes** (NumPy and JAX: NHWC, whose tokens are free; OpenVINO: NCHW). The networks never
  index them. They come from `to_map`, go through the operations whose names or docstrings speak of
  maps, and end in `from_map` or `tokens`.

A layer is a `Weights` scope (``weights / "conv_in"``) that holds ``weight`` and perhaps ``bias``
under diffusers' names. Taking the scope rather than arrays lets a backend transpose, pack, convert
or share the numbers once per layer; see `Weights.once`.

Precision: a backend computes in the type of its choice, the *network's* type. Sums of norms and
softmax are at least float32 in every backend. Times and their sinusoids are float32 until `cast`
brings them to the network's type.

Parity: in float32 every backend is within 1e-5 (relative) of the torch networks on random
configurations; ``tests/graph/cases.py`` has the cases for a backend's test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from sfumato.graph.weights import Weights

A = TypeVar("A")

#: Element-wise functions. "gelu" is exact (by erf), "gelu_tanh" the approximation by tanh,
#: "quick_gelu" ``x * sigmoid(1.702 x)``; "leaky_relu" has the slope 0.01.
Activation = Literal[
    "silu",
    "gelu",
    "gelu_tanh",
    "quick_gelu",
    "relu",
    "relu6",
    "leaky_relu",
    "mish",
    "tanh",
    "sigmoid",
]


class Ops(Protocol[A]):
    """What a backend can do; see the module's docstring for maps, layers and precision."""

    # -- numbers from outside -------------------------------------------------------------------

    def constant(self, value: np.ndarray[Any, Any]) -> A:
        """Numbers that the network itself brings: float32 or integers, kept in that type."""
        ...

    def weight(self, layer: Weights, name: str) -> A:
        """The raw array ``layer[name]`` as a plain array of the network's type."""
        ...

    def cast(self, x: A) -> A:
        """``x`` in the network's type."""
        ...

    def shape(self, x: A) -> tuple[int, ...]:
        """Sizes of a plain array."""
        ...

    # -- feature maps ---------------------------------------------------------------------------

    def to_map(self, x: A) -> A:
        """A plain array ``(N, C, H, W)`` as a feature map of the network's type."""
        ...

    def from_map(self, x: A) -> A:
        """A feature map as a plain array ``(N, C, H, W)``, in the network's type."""
        ...

    def map_shape(self, x: A) -> tuple[int, int, int, int]:
        """N, C, H and W of a feature map."""
        ...

    def tokens(self, x: A) -> A:
        """The pixels of a feature map, row by row, as tokens ``(N, H * W, C)``."""
        ...

    def map_of_tokens(self, tokens: A, height: int, width: int) -> A:
        """The inverse of `tokens`."""
        ...

    def conv2d(
        self,
        x: A,
        layer: Weights,
        *,
        stride: int = 1,
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> A:
        """Convolution of a map (cross-correlation, as in torch).

        Args:
            x: the map.
            layer: ``weight`` ``(out, in, kh, kw)`` and perhaps ``bias`` ``(out,)``.
            stride: in both directions.
            padding: zeros above, below, to the left and to the right.
        """
        ...

    def group_norm(
        self, x: A, layer: Weights, groups: int, eps: float, act: Activation | None = None
    ) -> A:
        """Group normalisation of a map with ``weight`` and ``bias``, then ``act`` if given."""
        ...

    def add_vector(self, x: A, vector: A) -> A:
        """A map with ``vector`` ``(N, C)`` added to each of its pixels."""
        ...

    def scale_shift(self, x: A, scale: A, shift: A) -> A:
        """``x * (1 + scale) + shift`` for a map and vectors ``(N, C)``."""
        ...

    def concat_maps(self, maps: Sequence[A]) -> A:
        """Maps of one size side by side in their channels."""
        ...

    def upsample(self, x: A, height: int, width: int) -> A:
        """A map of another size by repeating pixels: pixel i is old pixel ``floor(i * old/new)``.

        The quotient is float32, as in torch; where the new size is the double it is exact.
        """
        ...

    def average_pool(self, x: A) -> A:
        """Half the size: the means of 2x2 pixels; an odd last row or column is left out."""
        ...

    # -- maps and plain arrays ------------------------------------------------------------------

    def add(self, a: A, b: A | float) -> A:
        """Sum; plain arrays broadcast as in NumPy, maps have one shape."""
        ...

    def mul(self, a: A, b: A | float) -> A:
        """Product; as `add`."""
        ...

    def activation(self, x: A, kind: Activation) -> A:
        """An element-wise function."""
        ...

    # -- plain arrays ---------------------------------------------------------------------------

    def linear(self, x: A, layer: Weights) -> A:
        """``x @ weight.T + bias`` over the last axis; ``bias`` may be absent."""
        ...

    def layer_norm(self, x: A, layer: Weights, eps: float) -> A:
        """Normalisation over the last axis, with ``weight`` and ``bias``."""
        ...

    def geglu(self, x: A) -> A:
        """``(..., 2C)`` to ``(..., C)``: the first half times the exact GELU of the second."""
        ...

    def attention(
        self, q: A, k: A, v: A, heads: int, bias: A | None = None, causal: bool = False
    ) -> A:
        """Softmax attention.

        Args:
            q: queries ``(N, L, heads * D)``; the channels of a head lie side by side.
            k, v: keys and values ``(N, S, heads * D)``.
            heads: how many there are; scores are multiplied by ``D ** -0.5``.
            bias: added to the scores; broadcasts to ``(N, heads, L, S)``.
            causal: no token sees later ones.

        Returns:
            ``(N, L, heads * D)``.
        """
        ...

    def embedding(self, ids: A, layer: Weights) -> A:
        """Rows of the table ``weight`` ``(rows, C)``: ids ``(N, L)`` or ``(N,)``, one row each."""
        ...

    def concat(self, arrays: Sequence[A], axis: int) -> A:
        """Arrays end to end."""
        ...

    def split(self, x: A, parts: int) -> list[A]:
        """The last axis in so many equal parts."""
        ...

    def reshape(self, x: A, shape: Sequence[int]) -> A:
        """The same numbers in another shape; one size may be -1."""
        ...

    def broadcast_to(self, x: A, shape: Sequence[int]) -> A:
        """Repeat along axes of size one, as NumPy does."""
        ...

    def mean(self, x: A, axis: int) -> A:
        """Mean over an axis, which stays with size one."""
        ...

    def sin(self, x: A) -> A:
        """Sine."""
        ...

    def cos(self, x: A) -> A:
        """Cosine."""
        ...

    def position_of(self, ids: A, token: int | None) -> A:
        """Where a token stands first in each row of ids ``(N, L)``, as ``(N,)``.

        ``None`` asks for the first of the highest ids; a row without the token gives 0.
        """
        ...

    def take(self, x: A, positions: A) -> A:
        """One token per row: ``(N, L, C)`` at positions ``(N,)`` to ``(N, C)``."""
        ...
