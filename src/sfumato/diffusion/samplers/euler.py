"""Euler's method with churn (arXiv:2206.00364, algorithm 2, first order).

Without churn it is DDIM over sigma; see `samplers.ddim`.
"""

from __future__ import annotations

import math

import numpy as np

from sfumato.diffusion.frame import Frame
from sfumato.diffusion.plan import BASE, DENOISED, NOISE, Plan
from sfumato.diffusion.samplers.moves import blank
from sfumato.diffusion.schedule import Array


def churned(
    sigma: Array,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    steps: int | None = None,
) -> Array:
    """Sigmas after fresh noise.

    Args:
        sigma: ``(n,)``, before.
        s_churn: how much noise to add, spread over the steps with sigma in ``s_tmin .. s_tmax``.
        s_tmin: smallest sigma to add noise at.
        s_tmax: largest one.
        steps: number over which ``s_churn`` is spread; the number of sigmas if not given.
    """
    share = min(s_churn / (steps or len(sigma)), math.sqrt(2) - 1)
    return sigma * np.where((s_tmin <= sigma) & (sigma <= s_tmax), 1 + share, 1.0)


def euler(
    frame: Frame,
    *,
    churn: Array | None = None,
    s_noise: float = 1.0,
    denoised: Array | None = None,
) -> Plan:
    """Euler's method.

    Args:
        frame: of the run, over sigma.
        churn: ``(n,)``, sigmas to raise x to with fresh noise before each step, from `churned`.
            The network is asked before the noise is added, as diffusers does.
        s_noise: factor on the noise.
        denoised: ``(n, 2)``, weights of the churned x and of the output in the picture; those of
            the frame if not given.
    """
    sigma = frame.now.sigma
    churn = sigma if churn is None else churn
    denoised = frame.denoised if denoised is None else denoised
    added = np.sqrt(churn**2 - sigma**2) * s_noise
    toward = 1 - frame.next.sigma / churn
    base, update = blank(len(frame))
    update[:, 0, BASE] = 1 - toward
    update[:, 0, NOISE] = (1 - toward) * added
    update[:, 0, DENOISED] = toward
    return frame.plan(
        base,
        update,
        draws=churn > sigma,
        denoised=np.column_stack([denoised, denoised[:, 0] * added]),
    )
