"""The random numbers of NVIDIA cards, on any machine: torch's ``randn`` on CUDA, in NumPy.

A counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) maps
a counter and a key to four words, here Philox4x32 with ten rounds. torch gives each thread of the
card a counter of its own and makes normal numbers of the words by the Box-Muller transform, so
every number is known from its place and the seed alone. `noise` makes noise sources of this.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Words, ...]:
    """Four words for every counter.

    Args:
        counter: its four words, least significant first, as integers or uint32 arrays that
            broadcast.
        key: two words.

    >>> [hex(int(word)) for word in philox4x32((0, 0, 0, 0), (0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return tuple(np.asarray(word, dtype=np.uint32) for word in (c0, c1, c2, c3))


def cuda_randn(count: int, seed: int, draw: int = 0) -> NDArray[np.float32]:
    """What the ``draw``-th call of ``torch.randn(count, device="cuda")`` after a seed gives.

    This is so while every number has a thread of its own; a card runs some 40 000 to 300 000. The
    latents of a picture of 1024 x 1024 pixels are 65 536 numbers.

    Args:
        count: how many numbers.
        seed: 0 to 2**64 - 1.
        draw: how many draws went before.

    Returns:
        ``(count,)``. The card's own logarithm and sine may differ in the last digit.

    >>> [f"{number:.4f}" for number in cuda_randn(4, seed=0)]
    ['-0.9247', '-0.4253', '-2.6438', '0.1452']
    """
    threads = np.arange(count, dtype=np.uint64)
    first, second, _, _ = philox4x32((draw, 0, threads, 0), (seed & 0xFFFFFFFF, seed >> 32))
    return box_muller(first, second)


def box_muller(first: Words, second: Words) -> NDArray[np.float32]:
    """A standard normal number of every two words, with cuRAND's constants and roundings."""
    turn = float(np.float32(2.3283064e-10 * 6.2831855))
    x, y = (word.astype(np.float32).astype(np.float64) for word in (first, second))
    share, angle = (x * 2.0**-32 + 2.0**-33).astype(np.float32), y * turn + turn / 2
    length = np.sqrt(-2 * np.log(share.astype(np.float64)))
    sine = np.sin(angle.astype(np.float32).astype(np.float64))
    return length.astype(np.float32) * sine.astype(np.float32)
