"""Numbers that are known before a graph runs: what a caller gives, and what is computed of that
alone.

The plugin computes a graph in 16 bits where it is told to, times and their sinusoids included,
which ruins them: a thousand has no neighbours closer than four there. So everything up to where
the networks `cast` to their own type stays outside, in NumPy and float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Early:
    """A number or an array that does not depend on the graph.

    Attributes:
        example: the value for the inputs that the graph is built with; of a constant, the value.
        compute: from inputs by name to the value.
        fixed: it is a constant.
    """

    example: Array
    compute: Callable[[Mapping[str, Array]], Array]
    fixed: bool = False


def constant(value: Array) -> Early:
    """A constant."""
    return Early(value, lambda _: value, fixed=True)


def argument(name: str, example: Array) -> Early:
    """What the caller gives under a name; ``example`` has the shape and type."""
    return Early(example, lambda inputs: inputs[name])


def early(function: Callable[..., Array], *values: Early) -> Early:
    """``function`` of numbers that are known early."""
    example = function(*(value.example for value in values))
    if all(value.fixed for value in values):
        return constant(example)
    return Early(example, lambda inputs: function(*(v.compute(inputs) for v in values)))
