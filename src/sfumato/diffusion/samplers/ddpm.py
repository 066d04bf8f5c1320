"""Denoising diffusion probabilistic models: ancestral sampling (arXiv:2006.11239)."""

from __future__ import annotations

import numpy as np

from sfumato.diffusion.frame import Frame
from sfumato.diffusion.plan import BASE, DENOISED, NOISE, Plan
from sfumato.diffusion.samplers.moves import blank
from sfumato.errors import ConfigError

VARIANCES: tuple[str, ...] = (
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
    "learned",
    "learned_range",
)


def ddpm(frame: Frame, *, variance: str = "fixed_small") -> Plan:
    """The posterior of equation 7, with fresh noise before every timestep but 0.

    Args:
        frame: of the run, as trained.
        variance: of the noise. ``fixed_small`` is the posterior's own, ``fixed_large`` that of
            the forward process; ``_log`` makes no difference. With ``learned`` the network has
            twice the channels and says it; with ``learned_range`` it chooses between the two
            (arXiv:2102.09672).
    """
    if variance not in VARIANCES:
        allowed = ", ".join(repr(name) for name in VARIANCES)
        raise ConfigError(f"`variance_type` is {variance!r}; it has to be one of {allowed}.")
    now, following = frame.now, frame.next
    kept = (now.alpha / following.alpha) ** 2
    small = np.maximum((following.sigma / now.sigma) ** 2 * (1 - kept), 1e-20)
    large = 1 - kept
    draws = frame.timesteps > 0
    deviation = np.sqrt(large if variance.startswith("fixed_large") else small)
    base, update = blank(len(frame))
    update[:, 0, BASE] = np.sqrt(kept) * (following.sigma / now.sigma) ** 2
    update[:, 0, DENOISED] = following.alpha * (1 - kept) / now.sigma**2
    learned = variance.startswith("learned")
    update[:, 0, NOISE] = np.where(draws, 1.0 if learned else deviation, 0)
    bounds = [small, large] if variance == "learned_range" else [np.ones_like(small)]
    log_variance = np.log(np.stack(bounds, axis=1)) if learned else None
    return frame.plan(base, update, draws=draws, log_variance=log_variance)
