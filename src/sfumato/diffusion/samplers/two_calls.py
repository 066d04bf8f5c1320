"""Second-order methods with two calls of the network per step, in sigma space.

Their schedules list every call: each step has a first call at its start and a second one
elsewhere; the last step, which ends without noise, has only the first.
"""

from __future__ import annotations

import math

import numpy as np

from sfumato.diffusion.plan import BASE, NOISE, Limit, Plan, X, blank
from sfumato.diffusion.samplers.euler import derivative, in_sigma_space
from sfumato.diffusion.schedule import Schedule


def heun(
    schedule: Schedule,
    prediction: str = "epsilon",
    *,
    init_sigma: float | None = None,
    limit: Limit | None = None,
) -> Plan:
    """Heun's method (arXiv:2206.00364, algorithm 1): again with the mean of both slopes.

    Args:
        schedule: of the calls: sigma 0, 1, 1, 2, 2, and so on.
        prediction: what the network predicts.
        init_sigma: noise at the start; the first sigma if not given.
        limit: clip for ``denoised``.
    """
    sigma, end, scale, denoised = in_sigma_space(schedule, prediction)
    slopes, n = derivative(sigma, denoised, limited=limit is not None), len(schedule)
    base, update = blank(n, 1)
    update[:, 0, BASE] = 1
    for row in range(n):
        if row % 2 == 0:
            update[row, 0] += (end[row] - sigma[row]) * slopes[row]
        else:
            base[row, 0, X], base[row, 1, BASE] = 0, 1
            half = (sigma[row] - sigma[row - 1]) / 2
            update[row, 0] += half * slopes[row]
            update[row, 1] += half * slopes[row - 1]
    return Plan(
        timesteps=schedule.timesteps,
        sigmas=sigma,
        input_scale=scale,
        denoised=denoised,
        base=base,
        update=update,
        draws=np.zeros(n, dtype=bool),
        init_sigma=float(sigma[0]) if init_sigma is None else init_sigma,
        limit=limit,
    )


def kdpm2(
    schedule: Schedule,
    prediction: str = "epsilon",
    *,
    init_sigma: float | None = None,
    ancestral: bool = False,
) -> Plan:
    """Midpoint method in log sigma: DPM-Solver-2 as k-diffusion writes it.

    Args:
        schedule: of the calls: the start of each step, and then its middle. ``next`` is the
            level up to which the call leads; for a middle, that is the end of the step.
        prediction: what the network predicts.
        init_sigma: noise at the start; the first sigma if not given.
        ancestral: go to a lower sigma, and add noise up to the end of the step.
    """
    sigma, end, scale, denoised = in_sigma_space(schedule, prediction)
    slopes, n = derivative(sigma, denoised), len(schedule)
    base, update = blank(n, 1)
    draws = np.zeros(n, dtype=bool)
    update[:, 0, BASE] = 1
    for row in range(n):
        start = sigma[row]
        target = end[row]
        if row % 2:
            base[row, 0, X], base[row, 1, BASE] = 0, 1
            start = sigma[row - 1]
            if ancestral:
                target, update[row, 0, NOISE] = split_step(start, end[row])
                draws[row] = True
        update[row, 0] += (target - start) * slopes[row]
    return Plan(
        timesteps=schedule.timesteps,
        sigmas=sigma,
        input_scale=scale,
        denoised=denoised,
        base=base,
        update=update,
        draws=draws,
        init_sigma=float(sigma[0]) if init_sigma is None else init_sigma,
    )


def split_step(start: float, end: float) -> tuple[float, float]:
    """An ancestral step: the sigma to go down to, and the noise to add on it to reach ``end``."""
    down = end**2 / start  # which leaves a variance of end**2 - down**2 to the noise
    return down, math.sqrt(end**2 - down**2)
