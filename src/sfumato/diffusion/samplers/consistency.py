"""Samplers of consistency models: latent consistency (arXiv:2310.04378) and trajectory
consistency (arXiv:2402.19159). Few steps, with fresh noise in between."""

from __future__ import annotations

import numpy as np

from sfumato.diffusion.plan import (
    BASE,
    DENOISED,
    NOISE,
    OUTPUT,
    Limit,
    Plan,
    blank,
    to_denoised,
    to_epsilon,
)
from sfumato.diffusion.schedule import Array, Levels, Schedule

SIGMA_DATA = 0.5


def boundary_weights(timesteps: Array, scaling: float) -> tuple[Array, Array]:
    """Weights of x and of the predicted picture in a consistency model's answer.

    They make the answer at timestep 0 the input itself (arXiv:2303.01469, equation 5).
    """
    scaled = np.asarray(timesteps, dtype=np.float64) * scaling
    norm = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / norm, scaled / np.sqrt(norm)


def lcm(
    schedule: Schedule,
    prediction: str = "epsilon",
    *,
    scaling: float = 10.0,
    limit: Limit | None = None,
    ends_clean: bool = True,
) -> Plan:
    """Multistep latent consistency sampling: to the clean picture, and noise again.

    Args:
        schedule: the way.
        prediction: what the network predicts.
        scaling: how fast the answer departs from the input with the timestep.
        limit: clip or threshold for ``denoised``.
        ends_clean: whether the last row keeps the clean picture.
    """
    skip, out = boundary_weights(schedule.timesteps, scaling)
    draws = np.ones(len(schedule), dtype=bool)
    draws[-1] = not ends_clean
    alpha = np.where(draws, schedule.next.alpha, 1.0)
    base, update = blank(len(schedule))
    update[:, 0, BASE] = alpha * skip
    update[:, 0, DENOISED] = alpha * out
    update[:, 0, NOISE] = np.where(draws, schedule.next.sigma, 0.0)
    return Plan(
        timesteps=schedule.timesteps,
        sigmas=schedule.now.ratio,
        input_scale=np.ones(len(schedule)),
        denoised=to_denoised(schedule.now, prediction),
        base=base,
        update=update,
        draws=draws,
        limit=limit,
    )


def tcd(
    schedule: Schedule,
    midway: Levels,
    prediction: str = "epsilon",
    *,
    eta: float = 0.3,
    ends_clean: bool = True,
) -> Plan:
    """Strategic stochastic sampling: a DDIM step to ``midway``, then noise up to the next level.

    Args:
        schedule: the way.
        midway: ``(n,)`` levels of timestep ``(1 - eta) * next``.
        prediction: what the network predicts.
        eta: share of noise; 0 draws none.
        ends_clean: whether the last row adds no noise.
    """
    n = len(schedule)
    draws = np.full(n, eta > 0)
    draws[-1] &= not ends_clean
    ratio = np.where(draws, schedule.next.alpha / midway.alpha, 1.0)
    epsilon = to_epsilon(schedule.now, prediction)
    base, update = blank(n)
    update[:, 0, DENOISED] = ratio * midway.alpha
    update[:, 0, BASE] = ratio * midway.sigma * epsilon[:, 0]
    update[:, 0, OUTPUT] = ratio * midway.sigma * epsilon[:, 1]
    spread = np.sqrt(np.maximum(1 - ratio**2, 0))
    update[:, 0, NOISE] = np.where(draws, spread, 0.0)
    return Plan(
        timesteps=schedule.timesteps,
        sigmas=schedule.now.ratio,
        input_scale=np.ones(n),
        denoised=to_denoised(schedule.now, prediction),
        base=base,
        update=update,
        draws=draws,
    )
