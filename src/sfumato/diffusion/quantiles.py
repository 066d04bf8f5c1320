"""Quantiles of the beta distribution, for `schedule.beta_sigmas`; NumPy only, no SciPy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def beta_quantile(p: NDArray[np.float64], a: float, b: float) -> NDArray[np.float64]:
    """Where the cumulative beta(a, b) distribution reaches ``p``, by bisection.

    >>> beta_quantile(np.array([0.0, 0.5, 1.0]), 0.6, 0.6).round(6).tolist()
    [0.0, 0.5, 1.0]
    """
    low, high = np.zeros_like(p), np.ones_like(p)
    for _ in range(100):
        middle = (low + high) / 2
        below = beta_cdf(middle, a, b) < p
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(p <= 0, 0.0, np.where(p >= 1, 1.0, (low + high) / 2))


def beta_cdf(x: NDArray[np.float64], a: float, b: float) -> NDArray[np.float64]:
    """Regularised incomplete beta function.

    By its continued fraction (Abramowitz and Stegun, 26.5.8), on the side of the distribution
    where that converges fast.
    """
    mirrored = x > (a + 1) / (a + b + 2)
    y = np.where(mirrored, 1 - x, x)
    p, q = np.where(mirrored, b, a), np.where(mirrored, a, b)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    with np.errstate(divide="ignore"):
        front = np.exp(scale + p * np.log(y) + q * np.log1p(-y)) / p
    value = front * _fraction(y, p, q)
    return np.where(mirrored, 1 - value, value)


def _fraction(
    x: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64], terms: int = 60
) -> NDArray[np.float64]:
    """The continued fraction 1/(1 + d1/(1 + d2/(1 + ...))), from its far end to its front."""
    value = np.ones_like(x)
    for k in range(terms, 0, -1):
        m = k // 2
        if k % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        value = 1 + d / value
    return 1 / value
