"""Attention at the sizes that Stable Diffusion asks for: torch's, in blocks, and the kernels'.

    python -m benchmarks.attention [--dtype bfloat16] [--size 256 --size 512] [--rounds 3]

The three take turns on the same numbers; the shortest of the rounds counts. "of the peak" compares
the multiplications alone with what the processor can do in registers, so the exponentials and all
else count as lost. Uses as many threads as torch does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.native.library import can_compute, library
from sfumato.runtime.allocator import keep_memory
from sfumato.runtime.attention import fast_attention
from sfumato.runtime.blocked_attention import blocked_attention

#: Shortest time that one measurement takes, so that small shapes are repeated.
LEAST_SECONDS = 0.05
SIZES = (256, 512, 768, 1024)
#: Tokens of a text.
TEXT = 77


@dataclass(frozen=True)
class Shape:
    """One attention: its place, and its sizes; ``heads`` of ``width`` channels each."""

    place: str
    batch: int
    heads: int
    width: int
    queries: int
    keys: int

    @property
    def operations(self) -> int:
        """Multiplications and additions of both products."""
        return 4 * self.batch * self.heads * self.queries * self.keys * self.width


def shapes(size: int) -> list[Shape]:
    """Those of a UNet step with guidance and of a decoding, at one side length in pixels."""
    found = []
    for level, channels in enumerate((320, 640, 1280, 1280)):
        tokens = (size // (8 * 2**level)) ** 2
        place = f"UNet, {size // 8 >> level}x{size // 8 >> level}"
        for keys in (tokens, TEXT):
            found.append(Shape(place, 2, 8, channels // 8, tokens, keys))
    found.append(Shape("VAE", 1, 1, 512, (size // 8) ** 2, (size // 8) ** 2))
    return found


def inputs(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values, laid out as the models do."""
    q, k, v = (
        torch.randn(shape.batch, tokens, shape.heads, shape.width).to(dtype).transpose(1, 2)
        for tokens in (shape.queries, shape.keys, shape.keys)
    )
    return q, k, v


def seconds(compute: Callable[[], object]) -> float:
    """Time of one call, repeated while it is short."""
    count, start = 0, time.perf_counter()
    while True:
        compute()
        count += 1
        passed = time.perf_counter() - start
        if passed >= LEAST_SECONDS:
            return passed / count


def measured(shape: Shape, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """Seconds by name, the shortest of some rounds."""
    q, k, v = inputs(shape, dtype)
    ways: dict[str, Callable[[], object]] = {
        "torch": lambda: F.scaled_dot_product_attention(q, k, v),
        "blocks": lambda: blocked_attention(q, k, v, shape.width**-0.5),
    }
    if can_compute(str(dtype).removeprefix("torch.")):
        ways["kernel"] = lambda: fast_attention(q, k, v)
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            best[name] = min(best[name], seconds(way))
    return best


def peak(dtype: torch.dtype) -> float | None:
    """Operations a second of all threads in registers alone; None without the kernels."""
    found = library()
    if found is None or not can_compute(str(dtype).removeprefix("torch.")):
        return None
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        operations = found.sfumato_ceiling(dtype is torch.bfloat16, 2_000_000)
        best = max(best, operations / (time.perf_counter() - start))
    return best * torch.get_num_threads()


def row(shape: Shape, times: dict[str, float], ceiling: float | None) -> str:
    """One line of the table."""
    cells = [f"{shape.place}, {shape.keys} keys of {shape.width}"]
    for time_ in times.values():
        cells.append(f"{time_ * 1e3:.2f} ms, {shape.operations / time_ / 1e9:.0f}")
    if ceiling is not None:
        cells.append(f"{times['torch'] / times['kernel']:.2f}")
        cells.append(f"{shape.operations / times['kernel'] / ceiling:.0%}")
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description="Attention: torch, blocks, kernels.")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--size", type=int, action="append", help="side length in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep_memory()
    dtype = getattr(torch, options.dtype)
    ceiling = peak(dtype)
    if ceiling is not None:
        print(f"{options.dtype}, {torch.get_num_threads()} threads, {ceiling / 1e9:.0f} GFLOP/s")
    kernel = ["kernel", "torch / kernel", "of the peak"] if ceiling is not None else []
    print(" | ".join(["attention (ms, GFLOP/s)", "torch", "blocks", *kernel]))
    for size in options.size or SIZES:
        print(f"{size}x{size} pixels")
        for shape in shapes(size):
            print(row(shape, measured(shape, dtype, options.rounds), ceiling), flush=True)


if __name__ == "__main__":
    main()
