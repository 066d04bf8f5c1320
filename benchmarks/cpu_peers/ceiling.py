"""The best rate of matrix products that any library here reaches on this machine.

The table's percentages are of this figure. It is measured in every round like a contender, as the
clock of a shared machine drifts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from importlib.util import find_spec
from typing import Any

import numpy as np

#: Products of square matrices of this size: large enough for the full rate.
EDGE = 2048
OPERATIONS = 2 * EDGE**3
#: Times that each product is repeated, the fastest counts; and seconds after which one is enough:
#: where a processor has no bfloat16, some libraries take minutes.
REPEATS, PATIENCE = 3, 1.0


def products(threads: int, precisions: Collection[str]) -> dict[str, dict[str, Callable[[], Any]]]:
    """For each of these precisions the ways in which libraries multiply two matrices."""
    import torch

    torch.set_num_threads(threads)
    table: dict[str, dict[str, Callable[[], Any]]] = {}
    for name in ("float32", "bfloat16"):
        if name not in precisions:
            continue
        a, b = (torch.randn(EDGE, EDGE).to(getattr(torch, name)) for _ in range(2))
        table[name] = {"torch": lambda a=a, b=b: a @ b, "oneDNN, packed": packed(a, b)}
    if "int8" in precisions:
        c, d = (torch.randint(-100, 100, (EDGE, EDGE), dtype=torch.int8) for _ in range(2))
        table["int8"] = {"torch": lambda: torch._int_mm(c, d)}
    if find_spec("openvino") is not None:
        for name, hint in (("float32", "f32"), ("bfloat16", "bf16")):
            if name in table:
                table[name]["OpenVINO"] = by_openvino(hint, threads)
    return table


def packed(a: Any, b: Any) -> Callable[[], Any]:
    """A product with weights that oneDNN has laid out for itself."""
    import torch

    weight = torch.ops.mkldnn._reorder_linear_weight(b, EDGE)
    linear = torch.ops.mkldnn._linear_pointwise
    return lambda: linear(a, weight, None, "none", [], "")


def by_openvino(hint: str, threads: int) -> Callable[[], Any]:
    """A product with a constant in a graph of its own."""
    import openvino as ov
    from openvino import opset8 as ops

    b = np.random.default_rng(1).standard_normal((EDGE, EDGE), dtype=np.float32)
    a = ops.parameter([EDGE, EDGE], ov.Type.f32)
    product = ops.matmul(a, ops.constant(b), False, True)
    # The sum keeps the conversion of the result out of the time.
    total = ops.reduce_max(product, ops.constant(np.array([0, 1])), False)
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    compiled = ov.Core().compile_model(ov.Model([total], [a]), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda: request.infer([b], share_inputs=True)


def measure(table: dict[str, dict[str, Callable[[], Any]]]) -> dict[str, dict[str, float]]:
    """GFLOP/s for each precision and library."""
    rates: dict[str, dict[str, float]] = {}
    for precision, ways in table.items():
        rates[precision] = {}
        for name, product in ways.items():
            times: list[float] = []
            while len(times) < REPEATS and sum(times) < PATIENCE:
                started = time.perf_counter()
                product()
                times.append(time.perf_counter() - started)
            rates[precision][name] = OPERATIONS / min(times) / 1e9
    return rates
