"""Brownian motion that can be asked anywhere: the noise of the SDE samplers.

k-diffusion and diffusers draw the noise of DPM++ SDE from a virtual Brownian tree, so that a seed
means one path, whatever the number of steps. `BrownianPath` gives the numbers of that tree, and
needs no other library for it. The path over an interval is known by its ends; asked for a point
inside, it draws the value in the middle of the interval (a Brownian bridge), and goes on in the
half with the point. What it draws depends on the seed and on the place in the tree alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

#: Points closer than this many decimals are one.
DECIMALS = 6
_POOL_SIZE = 24


class BrownianPath:
    """A path W over ``low .. high``, one for each element of a tensor.

    Args:
        shape: of the tensor.
        low: where the path begins, at 0.
        high: where it ends.
        seed: which path; with several, one for each picture of a batch.
        dtype: of the numbers.
        device: where they are drawn.
        randn: draws a shape from a seed; torch's generator on the device if not given.
    """

    def __init__(
        self,
        shape: Sequence[int],
        low: float,
        high: float,
        seed: int | Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        randn: Callable[[int, tuple[int, ...]], torch.Tensor] | None = None,
    ) -> None:
        self.shape, self.dtype, self.device = tuple(shape), dtype, device
        self._randn = randn
        self.low, self.high, self.length = round(low, DECIMALS), round(high, DECIMALS), high - low
        self.seeds = seed

    def increment(self, start: float, end: float) -> torch.Tensor:
        """``W(end) - W(start)``; points outside of the path count as its ends."""

        def path(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
            return self._at(end, seed, shape) - self._at(start, seed, shape)

        if isinstance(self.seeds, int):
            return path(self.seeds, self.shape)
        return torch.stack([path(seed, self.shape[1:]) for seed in self.seeds])

    def noise(self, start: float, end: float) -> torch.Tensor:
        """The increment as a standard normal number."""
        return self.increment(start, end) / math.sqrt(abs(end - start))

    def _at(self, point: float, seed: int, shape: tuple[int, ...]) -> torch.Tensor:
        point = round(min(max(point, self.low), self.high), DECIMALS)
        start, end, key, depth = self.low, self.high, 0, 0
        top = np.random.SeedSequence(seed, pool_size=_POOL_SIZE).generate_state(3)[0]
        inside = self._draw(int(top), shape) * math.sqrt(self.length)
        before = torch.zeros_like(inside)
        while point != start and point != end:
            middle = round(0.5 * (end + start), DECIMALS)
            left, right = middle - start, end - middle
            node = np.random.SeedSequence(seed, spawn_key=(key, depth), pool_size=_POOL_SIZE)
            bridge = self._draw(int(node.generate_state(4)[0]), shape)
            first = left / (end - start) * inside + math.sqrt(left * right / (end - start)) * bridge
            if point <= middle:
                inside, end, key = first, middle, 2 * key
            else:
                before, inside, start, key = before + first, inside - first, middle, 2 * key + 1
            depth += 1
        return before if point == start else before + inside

    def _draw(self, seed: int, shape: tuple[int, ...]) -> torch.Tensor:
        if self._randn is not None:
            return self._randn(seed, shape).to(self.device, self.dtype)
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, dtype=self.dtype, device=self.device, generator=generator)
