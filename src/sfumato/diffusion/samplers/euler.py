"""Euler's method, plain, with churn, and ancestral (arXiv:2206.00364, k-diffusion).

These work on ``x = image + sigma * noise``, with sigma the ratio of a `Schedule`'s levels.
"""

from __future__ import annotations

import math

import numpy as np

from sfumato.diffusion.plan import (
    BASE,
    DENOISED,
    NOISE,
    OUTPUT,
    Column,
    Plan,
    X,
    blank,
    to_denoised,
)
from sfumato.diffusion.schedule import Array, Schedule


def in_sigma_space(schedule: Schedule, prediction: str) -> tuple[Array, Array, Array, Array]:
    """What all samplers on ``x = image + sigma * noise`` share.

    Returns:
        sigma ``(n,)``, next sigma ``(n,)``, input scale ``(n,)``, denoised weights ``(n, 3)``.
    """
    denoised = to_denoised(schedule.now, prediction)
    denoised[:, 0] = 1 if prediction == "epsilon" else denoised[:, 0] * schedule.now.alpha
    return schedule.now.ratio, schedule.next.ratio, schedule.now.alpha, denoised


def derivative(sigma: Array, denoised: Array, *, limited: bool = False) -> Array:
    """Weights ``(n, 5)`` over `Column` of the slope ``(x - denoised) / sigma``.

    Args:
        sigma: ``(n,)``.
        denoised: ``(n, 3)``, from `in_sigma_space`.
        limited: take the denoised picture after its limit; otherwise straight from the output.
    """
    weights = np.zeros((len(sigma), len(Column)))
    if limited:
        weights[:, X] = 1 / sigma
        weights[:, DENOISED] = -1 / sigma
    else:
        weights[:, X] = (1 - denoised[:, 0]) / sigma
        weights[:, OUTPUT] = -denoised[:, 1] / sigma
    return weights


def euler(
    schedule: Schedule,
    prediction: str = "epsilon",
    *,
    init_sigma: float | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    churn_steps: int | None = None,
) -> Plan:
    """Euler's method (algorithm 2 of the paper, first order).

    Args:
        schedule: the way.
        prediction: what the network predicts, see `plan.to_denoised`.
        init_sigma: noise at the start; the first sigma if not given.
        s_churn: how much fresh noise to add, spread over the steps with sigma in
            ``s_tmin .. s_tmax`` and multiplied by ``s_noise``. The network is asked before the
            noise is added, as diffusers does.
        churn_steps: number over which ``s_churn`` is spread; the number of steps if not given.
    """
    sigma, sigma_next, scale, denoised = in_sigma_space(schedule, prediction)
    share = min(s_churn / (churn_steps or len(schedule)), math.sqrt(2) - 1)
    gamma = np.where((s_tmin <= sigma) & (sigma <= s_tmax), share, 0.0)
    churned = sigma * (gamma + 1)
    added = np.sqrt(churned**2 - sigma**2) * s_noise
    if prediction == "epsilon":
        denoised[:, 1] = -churned
    denoised[:, 2] = denoised[:, 0] * added
    toward = 1 - sigma_next / churned
    base, update = blank(len(schedule))
    update[:, 0, BASE] = 1 - toward
    update[:, 0, NOISE] = (1 - toward) * added
    update[:, 0, DENOISED] = toward
    return Plan(
        timesteps=schedule.timesteps,
        sigmas=sigma,
        input_scale=scale,
        denoised=denoised,
        base=base,
        update=update,
        draws=gamma > 0,
        init_sigma=float(sigma[0]) if init_sigma is None else init_sigma,
    )


def euler_ancestral(
    schedule: Schedule, prediction: str = "epsilon", *, init_sigma: float | None = None
) -> Plan:
    """Euler's method to a sigma lower than the next, then noise up to it; noise at every row."""
    sigma, up_to, scale, denoised = in_sigma_space(schedule, prediction)
    down = up_to**2 / sigma
    up = np.sqrt(up_to**2 - down**2)
    base, update = blank(len(schedule))
    update[:, 0, BASE] = down / sigma
    update[:, 0, DENOISED] = 1 - down / sigma
    update[:, 0, NOISE] = up
    return Plan(
        timesteps=schedule.timesteps,
        sigmas=sigma,
        input_scale=scale,
        denoised=denoised,
        base=base,
        update=update,
        draws=np.ones(len(schedule), dtype=bool),
        init_sigma=float(sigma[0]) if init_sigma is None else init_sigma,
    )
