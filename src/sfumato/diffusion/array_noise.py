"""torch's normal random numbers on the CPU, without torch: ``torch.randn`` after a seed.

torch's generator is the Mersenne Twister of Matsumoto and Nishimura (1998), seeded with the lower
half of the seed. Fewer than sixteen numbers are made one pair at a time, of 53-bit uniform ones;
more are made by Box and Muller's transform over blocks of sixteen 24-bit ones: eight radii, then
eight angles. The last block is drawn anew where it is not whole, over what was there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sfumato.diffusion.philox import cuda_randn
from sfumato.diffusion.rng import find_rng
from sfumato.errors import InputError

Array = np.ndarray[Any, Any]

_BLOCK = 16


class TorchGenerator:
    """A seeded generator; each call of `randn` gives the next numbers.

    Args:
        seed: 0 to 2**64 - 1.

    >>> [f"{number:.4f}" for number in TorchGenerator(0).randn(4)]
    ['1.5410', '-0.2934', '-2.1788', '0.5684']
    """

    def __init__(self, seed: int) -> None:
        twister = np.random.MT19937()
        twister._legacy_seeding(seed & 0xFFFFFFFF)  # the original seeding, which torch has too
        self._words = twister
        self._waiting: float | None = None

    def randn(self, *shape: int) -> Array:
        """Standard normal numbers in float32.

        They are torch's up to the last digits of the logarithm, sine and cosine.
        """
        count = math.prod(shape)
        made = self._many(count) if count >= _BLOCK else self._few(count)
        return made.astype(np.float32).reshape(shape)

    def _many(self, count: int) -> Array:
        numbers = self._uniform(count)
        whole = count // _BLOCK * _BLOCK
        made = np.empty(count, np.float32)
        made[:whole] = _transform(numbers[:whole])
        if whole < count:
            made[-_BLOCK:] = _transform(self._uniform(_BLOCK))
        return made

    def _uniform(self, count: int) -> Array:
        """Numbers in [0, 1) of 24 bits."""
        words = self._words.random_raw(count) & 0xFFFFFF
        return words.astype(np.float32) * np.float32(2.0**-24)

    def _few(self, count: int) -> Array:
        return np.array([self._next() for _ in range(count)], np.float64)

    def _next(self) -> float:
        """One number; the second one of a pair waits for the next call."""
        if self._waiting is not None:
            number, self._waiting = self._waiting, None
            return number
        angle, share = self._double(), self._double()
        radius = math.sqrt(-2 * math.log1p(-share))
        self._waiting = radius * math.sin(2 * math.pi * angle)
        return radius * math.cos(2 * math.pi * angle)

    def _double(self) -> float:
        """A number in [0, 1) of 53 bits."""
        high, low = (int(word) for word in self._words.random_raw(2))
        return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def _transform(uniform: Array) -> Array:
    """Box and Muller's transform of whole blocks."""
    blocks = uniform.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(-2 * np.log(1 - blocks[:, 0]))
    angle = np.float32(2 * math.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


class ArrayNoise:
    """Noise with one seed per picture, on arrays: `sfumato.diffusion.noise.SeededNoise`.

    Args:
        seeds: one per picture.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [TorchGenerator(seed) for seed in seeds]

    def draw(self, shape: Sequence[int], dtype: Any = None, device: Any = None) -> Array:
        """``shape[0]`` pictures of noise, as many as there are seeds; always float32 in memory."""
        return np.stack([generator.randn(*shape[1:]) for generator in self._generators])


class NvidiaArrayNoise:
    """Noise as torch draws it on an NVIDIA card: `sfumato.diffusion.seeds.NvidiaNoise`."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = tuple(seeds)
        self._draws = 0

    def draw(self, shape: Sequence[int], dtype: Any = None, device: Any = None) -> Array:
        """As `ArrayNoise.draw`."""
        count = math.prod(shape[1:])
        rows = [cuda_randn(count, seed, self._draws) for seed in self._seeds]
        self._draws += 1
        return np.stack(rows).reshape(shape)


#: What the names in `sfumato.diffusion.rng` stand for, as far as arrays can be drawn so.
ARRAY_RNGS: dict[str, Callable[[Sequence[int]], Any]] = {
    "cpu": ArrayNoise,
    "nvidia": NvidiaArrayNoise,
}


def seeded_noise(seeds: Sequence[int], rng: str = "cpu") -> Any:
    """A source of noise with one seed per picture.

    Raises:
        InputError: there is no such way to draw, or torch alone has it.
    """
    name = find_rng(rng)
    if name not in ARRAY_RNGS:
        raise InputError(f"Noise as of {name} is drawn by torch alone.")
    return ARRAY_RNGS[name](seeds)
