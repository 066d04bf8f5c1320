"""Element-wise functions and norms on NumPy arrays, for `sfumato.graph.numpy_ops`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sfumato.graph.ops import Activation

Array = np.ndarray[Any, Any]

#: Numbers per block: what one function reads and writes between its passes stays in the cache.
_BLOCK = 2**15
_SQRT_HALF = np.float32(0.7071067811865476)
_SQRT_2_OVER_PI = np.float32(0.7978845608028654)


def group_norm(x: Array, weight: Array, bias: Array, groups: int, eps: float, out: Array) -> None:
    """Normalise one map ``(H, W, C)`` in groups of channels.

    The variance is that of centred numbers: squares of uncentred ones would lose digits where the
    mean is large.
    """
    pixels, result = x.reshape(-1, x.shape[-1]), out.reshape(-1, x.shape[-1])
    count, channels = pixels.shape
    each = channels // groups
    mean = pixels.mean(axis=0).reshape(groups, each).mean(axis=1)
    np.subtract(pixels, mean.repeat(each), out=result)
    squares = np.einsum("lc,lc->c", result, result).reshape(groups, each).sum(axis=1)
    scale = 1 / np.sqrt(squares / np.float32(count * each) + np.float32(eps))
    result *= scale.repeat(each) * weight
    result += bias


def _sigmoid(x: Array, out: Array) -> None:
    np.negative(x, out=out)
    np.exp(out, out=out)
    out += 1
    np.reciprocal(out, out=out)


def _silu(x: Array, out: Array) -> None:
    gate = np.empty_like(x)
    _sigmoid(x, gate)
    np.multiply(x, gate, out=out)


def _quick_gelu(x: Array, out: Array) -> None:
    gate = x * np.float32(1.702)
    _sigmoid(gate, gate)
    np.multiply(x, gate, out=out)


def _gelu(x: Array, out: Array) -> None:
    half = x * np.float32(0.5)
    gate = erf(x * _SQRT_HALF)
    gate += 1
    np.multiply(half, gate, out=out)


def erf(x: Array) -> Array:
    """The error function, within 5e-7 in float32.

    Formula 7.1.26 of Abramowitz and Stegun, "Handbook of Mathematical Functions" (1964).
    """
    size = np.abs(x)
    t = 1 / (1 + np.float32(0.3275911) * size)
    sum_ = np.full_like(t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        sum_ *= t
        sum_ += np.float32(coefficient)
    sum_ *= t
    np.square(size, out=size)
    np.negative(size, out=size)
    sum_ *= np.exp(size, out=size)
    return np.copysign(1 - sum_, x)


def _gelu_tanh(x: Array, out: Array) -> None:
    gate = x + np.float32(0.044715) * x * x * x
    np.tanh(_SQRT_2_OVER_PI * gate, out=gate)
    gate += 1
    gate *= np.float32(0.5)
    np.multiply(x, gate, out=out)


def _relu(x: Array, out: Array) -> None:
    np.maximum(x, 0, out=out)


def _relu6(x: Array, out: Array) -> None:
    np.clip(x, 0, 6, out=out)


def _leaky_relu(x: Array, out: Array) -> None:
    np.copyto(out, np.where(x > 0, x, np.float32(0.01) * x))


def _mish(x: Array, out: Array) -> None:
    np.multiply(x, np.tanh(np.logaddexp(np.float32(0), x)), out=out)


def _tanh(x: Array, out: Array) -> None:
    np.tanh(x, out=out)


def _in_blocks(function: Callable[[Array, Array], None]) -> Callable[[Array, Array], None]:
    """The same function over a block at a time; ``out`` may be ``x``."""

    def blocked(x: Array, out: Array) -> None:
        rows, results = x.reshape(-1, x.shape[-1]), out.reshape(-1, x.shape[-1])
        step = max(1, _BLOCK // x.shape[-1])
        with np.errstate(over="ignore", under="ignore"):  # infinity and zero are right then
            for start in range(0, len(rows), step):
                function(rows[start : start + step], results[start : start + step])

    return blocked


#: The functions of `Activation`: each writes what it makes of its first argument to the second.
ACTIVATIONS: dict[Activation, Callable[[Array, Array], None]] = {
    "silu": _in_blocks(_silu),
    "gelu": _in_blocks(_gelu),
    "gelu_tanh": _in_blocks(_gelu_tanh),
    "quick_gelu": _in_blocks(_quick_gelu),
    "relu": _in_blocks(_relu),
    "relu6": _in_blocks(_relu6),
    "leaky_relu": _in_blocks(_leaky_relu),
    "mish": _in_blocks(_mish),
    "tanh": _in_blocks(_tanh),
    "sigmoid": _in_blocks(_sigmoid),
}
