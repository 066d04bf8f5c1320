"""Linear multistep method (Adams-Bashforth with uneven steps), in sigma space."""

from __future__ import annotations

import numpy as np
from numpy.polynomial import Polynomial

from sfumato.diffusion.plan import BASE, Plan, blank
from sfumato.diffusion.samplers.euler import derivative, in_sigma_space
from sfumato.diffusion.schedule import Array, Schedule


def lms(
    schedule: Schedule,
    prediction: str = "epsilon",
    *,
    order: int = 4,
    init_sigma: float | None = None,
    earlier: Array | None = None,
) -> Plan:
    """Integrate the polynomial through the last slopes ``dx / dsigma``.

    Args:
        schedule: the way.
        prediction: what the network predicts.
        order: how many slopes at most.
        init_sigma: noise at the start; the first sigma if not given.
        earlier: sigmas before the first one, if ``schedule`` is the end of a longer way. They
            shape the polynomials as if their slopes were known, as in diffusers.
    """
    sigma, end, scale, denoised = in_sigma_space(schedule, prediction)
    before = np.zeros(0) if earlier is None else earlier
    sigmas, n = np.concatenate([before, sigma]), len(schedule)
    slopes = derivative(sigma, denoised)
    base, update = blank(n, max(min(order, n) - 1, 0))
    update[:, 0, BASE] = 1
    for row in range(n):
        place = len(before) + row
        nodes = sigmas[max(place + 1 - order, 0) : place + 1][::-1]
        for age in range(min(len(nodes), row + 1)):
            weight = lagrange_integral(nodes, age, sigma[row], end[row])
            update[row, age] += weight * slopes[row - age]
    return Plan(
        timesteps=schedule.timesteps,
        sigmas=sigma,
        input_scale=scale,
        denoised=denoised,
        base=base,
        update=update,
        draws=np.zeros(n, dtype=bool),
        init_sigma=float(sigma[0]) if init_sigma is None else init_sigma,
    )


def lagrange(nodes: Array, which: int) -> Polynomial:
    """The polynomial that is 1 at ``nodes[which]`` and 0 at the other nodes."""
    product = Polynomial([1.0])
    for other in np.delete(nodes, which):
        product *= Polynomial([-other, 1.0]) / (nodes[which] - other)
    return product


def lagrange_integral(nodes: Array, which: int, start: float, end: float) -> float:
    """Integral of `lagrange` from ``start`` to ``end``."""
    # Around the start, where the numbers are small.
    whole = lagrange(nodes - start, which).integ()
    return float(whole(end - start))
