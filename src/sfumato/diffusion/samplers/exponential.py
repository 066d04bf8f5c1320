"""Exponential integrators: the arithmetic that DPM-Solver, DEIS, UniPC and SA-Solver share.

All walk in ``lambda = log(alpha / sigma)`` and know one step, of length ``h`` from level ``s`` to
level ``t``, exactly but for what the network will say on the way. With ``v`` from 0 to 1:

    x_t = keep * x_s + scale * z * integral of exp(z * (v - 1)) * answer(v) dv  +  noise

Answers are pictures (z = h) or noises (z = -h). With ``eta`` the step is one of a stochastic
equation, whose marginals are the same (arXiv:2309.05019, equations 5 and 13; eta is their tau**2):
0 adds no noise, 1 as much as the ancestral methods. Between the network's last answers the methods
draw polynomials. Where they differ is how exactly they integrate them: `Leg.moments` are the
integrals of the powers of v.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sfumato.diffusion.samplers.moves import Move
from sfumato.diffusion.schedule import Array, Levels


@dataclass(frozen=True)
class Leg:
    """One step; see the module's formula.

    Attributes:
        start: lambda at the start.
        length: h.
        keep: weight of the starting point.
        first: integral of an answer that stays the same.
        scale: see the formula.
        z: see the formula.
        noise: standard deviation of the fresh noise.
    """

    start: float
    length: float
    keep: float
    first: float
    scale: float
    z: float
    noise: float

    @property
    def linear(self) -> float:
        """Integral of v with the exponential left out."""
        return self.scale * self.z / 2

    def moments(self, count: int) -> Array:
        """Integrals of 1, v, v**2, ..., ``count`` of them."""
        higher = [self.scale * _moment(k, self.z) for k in range(1, count)]
        return np.array([self.first, *higher])

    def move(self, moments: Array, lambdas: Array) -> Move:
        """The move that integrates the polynomial through the answers.

        Args:
            moments: exact ones, or what a method takes in their place.
            lambdas: where the answers were given, as many as moments, newest first. Of two at one
                place the older is left out, with all before it.
        """
        if self.length == 0:
            return Move(self.keep, ())
        answers = polynomial(moments, (lambdas - self.start) / self.length)
        return Move(self.keep, answers, (self.noise,) if self.noise else ())


def leg(s: Levels, t: Levels, *, image: bool, eta: float = 0.0) -> Leg:
    """The step from level ``s`` to level ``t``, each one level, for answers of a kind."""
    (alpha_s, sigma_s), (alpha, sigma) = (
        (float(level.alpha[0]), float(level.sigma[0])) for level in (s, t)
    )
    start = float(s.log_snr[0])
    h = float(t.log_snr[0]) - start
    drift = eta * h if eta else 0.0
    if image:
        keep, scale, z = sigma / sigma_s * math.exp(-drift), alpha, h + drift
        first = -scale * math.expm1(-z)
        noise = sigma * math.sqrt(max(-math.expm1(-2 * drift), 0.0))
    else:
        keep, scale, z = alpha / alpha_s, sigma * (1 + eta), -h
        first = (1 + eta) * (sigma - keep * sigma_s)
        noise = sigma * math.sqrt(eta * max(math.expm1(2 * h), 0.0)) if eta else 0.0
    return Leg(start, h, keep, first, scale, z, noise)


def polynomial(moments: Array, places: Array) -> list[float]:
    """Weights of values at ``places``, newest first, so that every polynomial gets its integral.

    Args:
        moments: integrals of 1, v, v**2, ...
        places: v of the values, as many; what comes after one that is there twice is left out.
    """
    use = 1
    while use < len(places) and np.isfinite(places[use]) and places[use] not in places[:use]:
        use += 1
    powers = np.vander(places[:use], increasing=True)
    return np.linalg.solve(powers.T, moments[:use]).tolist()


def _moment(k: int, z: float) -> float:
    """``z`` times the integral of ``exp(z * (v - 1)) * v**k`` for v from 0 to 1."""
    if math.isinf(z):
        return 1.0 if z > 0 else z
    if abs(z) < 1:  # a series, where the recursion below would lose its digits
        total, term, m = 0.0, z / (k + 1), k + 2
        while abs(term) > 1e-18 * abs(z):
            total, term, m = total + term, -term * z / m, m + 1
        return total
    return 1 - k / z * _moment(k - 1, z) if k else -math.expm1(-z)
