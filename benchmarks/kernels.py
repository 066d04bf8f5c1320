"""The compiled kernels beside torch's, on each shape of layer of a Stable Diffusion step.

    python -m benchmarks.kernels --dtype bfloat16

Both are given the same tensors in turn, channels-last, with outputs in memory that is there
already; the median of each counts. A rate is of the operations of the direct way, so that a
convolution with fewer multiplications may exceed the processor's own rate, which is in the first
line. The weighted ratio at the end is of all layers of a step of SD 1.5 at 512x512 with guidance,
as often as each occurs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.native.library import library
from sfumato.runtime import kernels
from sfumato.runtime.allocator import keep_memory
from sfumato.runtime.layer_kernels import convolve, linear


@dataclass(frozen=True)
class Layer:
    """A convolution (``edge`` is that of its map) or, with no kernel, a linear layer of ``rows``.

    Attributes:
        times: how often a step has it.
    """

    times: int
    channels: int
    columns: int
    edge: int = 0
    kernel: int = 0
    stride: int = 1
    rows: int = 0

    @property
    def name(self) -> str:
        if not self.kernel:
            return f"linear {self.rows} x {self.channels} -> {self.columns}"
        step = f"/{self.stride}" if self.stride > 1 else ""
        size = f"{self.kernel}x{self.kernel}{step}"
        return f"{size} {self.edge}x{self.edge} {self.channels} -> {self.columns}"

    @property
    def operations(self) -> int:
        if not self.kernel:
            return 2 * self.rows * self.channels * self.columns
        pixels = 2 * (self.edge // self.stride) ** 2
        return 2 * pixels * self.kernel**2 * self.channels * self.columns


def _level(edge: int, width: int, wide: tuple[int, ...], same: int) -> list[Layer]:
    """A level's convolutions: ``same`` from its width to its width, and those from other widths."""
    others = [Layer(1, channels, width, edge, 3) for channels in wide]
    return [Layer(same, width, width, edge, 3), *others]


def _transformers(edge: int, width: int, count: int) -> list[Layer]:
    """The linear layers of so many transformer blocks."""
    rows = 2 * edge * edge
    return [
        Layer(6 * count, width, width, rows=rows),
        Layer(2 * count, 768, width, rows=2 * 77),
        Layer(count, width, 8 * width, rows=rows),
        Layer(count, 4 * width, width, rows=rows),
        Layer(2 * count, width, width, edge, 1),
    ]


LAYERS = [
    *_level(64, 320, (960, 640, 640), 7),
    *_level(32, 640, (320, 1920, 1280, 960), 6),
    *_level(16, 1280, (640, 2560, 2560, 1920), 6),
    *_level(8, 1280, (2560, 2560, 2560), 11),
    Layer(1, 640, 640, 64, 3),
    Layer(1, 1280, 1280, 32, 3),
    Layer(1, 1280, 1280, 16, 3),
    Layer(1, 320, 320, 64, 3, stride=2),
    Layer(1, 640, 640, 32, 3, stride=2),
    Layer(1, 1280, 1280, 16, 3, stride=2),
    *_transformers(64, 320, 5),
    *_transformers(32, 640, 5),
    *_transformers(16, 1280, 5),
    *_transformers(8, 1280, 1),
]


def tensors(layer: Layer, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias with numbers of a network's size."""
    kernel = (layer.kernel, layer.kernel) if layer.kernel else ()
    weight = torch.randn(layer.columns, layer.channels, *kernel)
    weight /= weight[0].numel() ** 0.5
    shape = (2, layer.channels, layer.edge, layer.edge)
    x = torch.randn(shape if kernel else (1, layer.rows, layer.channels)).to(dtype)
    weight = weight.to(dtype)
    if kernel:
        x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
    return x, nn.Parameter(weight), nn.Parameter(torch.randn(layer.columns).to(dtype))


def in_turn(
    first: Callable[[], object], second: Callable[[], object], seconds: float
) -> list[float]:
    """The median time of each of two calls that take turns for so long, at least thrice."""
    times: list[list[float]] = [[], []]
    for call in (first, second):
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for call, list_ in zip((first, second), times, strict=True):
            start = time.perf_counter()
            call()
            list_.append(time.perf_counter() - start)
    return [statistics.median(list_) for list_ in times]


def measure(layer: Layer, dtype: torch.dtype, seconds: float) -> tuple[float, float, bool]:
    """Seconds of torch and of sfumato; and whether that has a kernel for the layer."""
    x, weight, bias = tensors(layer, dtype)
    if not layer.kernel:
        ours, theirs = (lambda: linear(x, weight, bias)), (lambda: F.linear(x, weight, bias))
    else:
        rest = (layer.stride, layer.kernel // 2)
        ours = lambda: convolve(x, weight, bias, *rest)  # noqa: E731
        theirs = lambda: F.conv2d(x, weight, bias, *rest)  # noqa: E731
    if ours() is None:
        torch_seconds, _ = in_turn(theirs, theirs, seconds)
        return torch_seconds, torch_seconds, False
    torch_seconds, our_seconds = in_turn(theirs, ours, seconds)
    return torch_seconds, our_seconds, True


def ceiling(dtype: torch.dtype) -> float:
    """GFLOP/s of one processor that multiplies and adds in registers alone; NaN without kernels."""
    found = library()
    if found is None:
        return float("nan")
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        operations = found.sfumato_ceiling(dtype is torch.bfloat16, 2_000_000)
        best = max(best, operations / (time.perf_counter() - start) / 1e9)
    return best or float("nan")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="for each layer")
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    print(f"kernels: {kernels.describe()}; threads: {options.threads}")
    print(f"one processor, registers alone: {ceiling(dtype):.0f} GFLOP/s\n")
    print(f"{'layer':<34}{'times':>6}{'torch':>8}{'sfumato':>9}{'ratio':>7}   (GFLOP/s)")
    totals = [0.0, 0.0]
    for layer in LAYERS:
        theirs, ours, taken = measure(layer, dtype, options.seconds)
        totals = [total + layer.times * t for total, t in zip(totals, (theirs, ours), strict=True)]
        rates = [layer.operations / seconds / 1e9 for seconds in (theirs, ours)]
        note = "" if taken else "  left to torch"
        print(
            f"{layer.name:<34}{layer.times:>6}{rates[0]:>8.0f}{rates[1]:>9.0f}"
            f"{theirs / ours:>7.2f}{note}",
            flush=True,
        )
    print(f"\nall layers of a step: torch {totals[0]:.2f} s, sfumato {totals[1]:.2f} s,", end=" ")
    print(f"ratio {totals[0] / totals[1]:.2f}")


if __name__ == "__main__":
    main()
