"""Graphs, compiled for the shapes that they are asked for.

A graph is of one shape: the plugin plans memory and kernels for it. The last few shapes are kept,
each with packed weights of its own. Nothing is kept on disk: to read a compiled graph of Stable
Diffusion back from OpenVINO's cache takes as long as to compile it, and 1.7 GB for each shape.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import openvino as ov

from sfumato.checkpoints.arrays import StoredTensor
from sfumato.errors import InputError
from sfumato.graph.weights import Weights
from sfumato.runtime.openvino.early import Early, argument
from sfumato.runtime.openvino.ops import OpenVinoOps, Value
from sfumato.runtime.page_ranges import give_back_ranges

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
#: Builds a network: from the operations and the inputs by name to its outputs.
Build = Callable[[OpenVinoOps, Mapping[str, Any]], Sequence[Value]]
#: Names of inputs that are the low-rank factors of a layer, before its path.
DOWN, UP = "low_rank_down.", "low_rank_up."

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Settings:
    """How to compile.

    Attributes:
        dtype: what to compute in: "float32" or "bfloat16".
        threads: how many; None leaves it to OpenVINO.
        shapes: how many compiled graphs of a network to keep.

    Raises:
        InputError: an unknown ``dtype``.
    """

    dtype: str = "float32"
    threads: int | None = None
    shapes: int = 2

    def __post_init__(self) -> None:
        if self.dtype not in PRECISIONS:
            raise InputError(
                f"OpenVINO computes in {' or '.join(PRECISIONS)} here, not in {self.dtype[:80]}."
            )

    def properties(self) -> dict[str, Any]:
        """The same in OpenVINO's words."""
        made: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.dtype],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if self.threads is not None:
            made["INFERENCE_NUM_THREADS"] = self.threads
        return made


@cache
def core() -> ov.Core:
    """OpenVINO's plugins; one for the process."""
    return ov.Core()


@dataclass(frozen=True)
class Graph:
    """A compiled graph.

    Attributes:
        request: runs it.
        sources: for each input of the graph what it is of the caller's.
    """

    request: Any
    sources: tuple[Early, ...]

    def __call__(self, inputs: Arrays) -> list[Array]:
        """Run; the outputs lie in the graph's own memory until the next call."""
        feed = [np.ascontiguousarray(source.compute(inputs)) for source in self.sources]
        self.request.infer(feed, share_inputs=True, share_outputs=True)
        count = len(self.request.model_outputs)
        return [self.request.get_output_tensor(i).data for i in range(count)]


class Compiled:
    """A network, compiled for each set of shapes when it is first asked for.

    Args:
        build: the network.
        weights: those that it is built from; pages of files are given back once it is compiled.
        settings: how to compile.
    """

    def __init__(self, build: Build, weights: Weights, settings: Settings) -> None:
        self._build, self._weights, self.settings = build, weights, settings
        self._graphs: OrderedDict[tuple[Any, ...], Graph] = OrderedDict()

    def __call__(self, inputs: Arrays) -> list[Array]:
        """The outputs for these inputs; they are overwritten by the next call of these shapes."""
        key = tuple((name, array.shape, array.dtype.str) for name, array in inputs.items())
        if key not in self._graphs:
            while len(self._graphs) >= self.settings.shapes:
                self._graphs.popitem(last=False)
            self._graphs[key] = self._compile(inputs)
        self._graphs.move_to_end(key)
        return self._graphs[key](inputs)

    def forget(self) -> None:
        """Drop what is compiled, as after a change of the weights."""
        self._graphs.clear()

    def _compile(self, inputs: Arrays) -> Graph:
        given = {name: argument(name, array) for name, array in inputs.items()}
        paths = [name.removeprefix(DOWN) for name in given if name.startswith(DOWN)]
        ops = OpenVinoOps({path: (given[DOWN + path], given[UP + path]) for path in paths})
        outputs = [ops.node(output) for output in self._build(ops, given)]
        model = ov.Model(outputs, ops.parameters)  # pyright: ignore[reportGeneralTypeIssues]
        made = core().compile_model(model, "CPU", self.settings.properties() | ops.properties)
        give_back_ranges(_ranges(self._weights.arrays.values()))
        return Graph(made.create_infer_request(), tuple(ops.sources))


def _ranges(weights: Iterable[Any]) -> Iterator[tuple[int, int]]:
    """Where weights lie in memory. The plugin has packed them, and rarely reads them again."""
    for weight in weights:
        array = weight.raw if isinstance(weight, StoredTensor) else weight
        yield array.ctypes.data, array.nbytes
