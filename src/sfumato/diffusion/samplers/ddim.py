"""Denoising diffusion implicit models (arXiv:2010.02502)."""

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
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError


def ddim(
    schedule: Schedule,
    prediction: str = "epsilon",
    *,
    eta: float = 0.0,
    limit: Limit | None = None,
    noise_from_limited: bool = False,
) -> Plan:
    """DDIM, equation 12.

    Args:
        schedule: the way; ``next`` may differ from ``now`` shifted by one.
        prediction: what the network predicts.
        eta: 0 is deterministic, 1 is as random as DDPM.
        limit: clip or threshold for ``denoised``.
        noise_from_limited: derive the noise direction from the limited ``denoised`` instead of
            the network's output (``use_clipped_model_output`` of diffusers).

    Raises:
        InputError: for ``eta`` out of range.
    """
    if not 0 <= eta <= 1:
        raise InputError(f"`eta` has to be between 0 and 1 but is {eta}.")
    now, following = schedule.now, schedule.next
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (following.sigma / now.sigma) ** 2 * (1 - (now.alpha / following.alpha) ** 2)
    spread = eta * np.sqrt(variance)
    direction = np.sqrt(following.sigma**2 - spread**2)
    base, update = blank(len(schedule))
    update[:, 0, DENOISED] = following.alpha
    if noise_from_limited:
        update[:, 0, BASE] = direction / now.sigma
        update[:, 0, DENOISED] -= direction * now.alpha / now.sigma
    else:
        epsilon = to_epsilon(now, prediction)
        update[:, 0, BASE] = direction * epsilon[:, 0]
        update[:, 0, OUTPUT] = direction * epsilon[:, 1]
    update[:, 0, NOISE] = spread
    return Plan(
        timesteps=schedule.timesteps,
        sigmas=now.ratio,
        input_scale=np.ones(len(schedule)),
        denoised=to_denoised(now, prediction),
        base=base,
        update=update,
        draws=np.full(len(schedule), eta > 0),
        limit=limit,
    )
