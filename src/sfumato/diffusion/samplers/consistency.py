"""Samplers of consistency models: latent consistency (arXiv:2310.04378), trajectory consistency
(arXiv:2402.19159) and the first ones (arXiv:2303.01469). Few steps, with fresh noise in between."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfumato.diffusion.frame import Frame
from sfumato.diffusion.plan import BASE, DENOISED, NOISE, Plan
from sfumato.diffusion.samplers.moves import blank
from sfumato.diffusion.schedule import Array, Levels

SIGMA_DATA = 0.5


def boundary_weights(timesteps: Array, scaling: float) -> tuple[Array, Array]:
    """Weights of x and of the predicted picture in a latent consistency model's answer.

    They make the answer at timestep 0 the input itself (arXiv:2303.01469, equation 5).
    """
    scaled = np.asarray(timesteps, dtype=np.float64) * scaling
    norm = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / norm, scaled / np.sqrt(norm)


def lcm(frame: Frame, *, scaling: float = 10.0, ends_clean: bool = True) -> Plan:
    """Multistep latent consistency sampling: to the clean picture, and noise again.

    Args:
        frame: of the run, as trained.
        scaling: how fast the answer departs from the input with the timestep.
        ends_clean: whether the last row keeps the clean picture.
    """
    skip, out = boundary_weights(frame.timesteps, scaling)
    draws = np.ones(len(frame), dtype=bool)
    draws[-1] = not ends_clean
    return renoised(frame, frame.next, draws, skip, out)


def renoised(
    frame: Frame,
    levels: Levels,
    draws: NDArray[np.bool_],
    skip: Array | float = 0.0,
    out: Array | float = 1.0,
) -> Plan:
    """Each call's picture, noised to a level again.

    Args:
        frame: of the run.
        levels: ``(n,)``, to noise to.
        draws: ``(n,)`` bool; the other rows keep the clean picture.
        skip: weight of x in the picture.
        out: weight of the denoised picture in it.
    """
    alpha = np.where(draws, levels.alpha, 1.0)
    base, update = blank(len(frame))
    update[:, 0, BASE] = alpha * skip
    update[:, 0, DENOISED] = alpha * out
    update[:, 0, NOISE] = np.where(draws, levels.sigma, 0.0)
    return frame.plan(base, update, draws=draws)


def tcd(frame: Frame, midway: Levels, *, eta: float = 0.3, ends_clean: bool = True) -> Plan:
    """Strategic stochastic sampling: a DDIM step to ``midway``, then noise up to the next level.

    Args:
        frame: of the run, as trained.
        midway: ``(n,)`` levels of timestep ``(1 - eta) * next``.
        eta: share of noise; 0 draws none.
        ends_clean: whether the last row adds no noise.
    """
    n = len(frame)
    draws = np.full(n, eta > 0)
    draws[-1] &= not ends_clean
    ratio = np.where(draws, frame.next.alpha / midway.alpha, 1.0)
    base, update = blank(n)
    update[:, 0] = (ratio * midway.sigma)[:, None] * frame.answers(image=False, limited=False)
    update[:, 0, DENOISED] += ratio * midway.alpha
    spread = np.sqrt(np.maximum(1 - ratio**2, 0))
    update[:, 0, NOISE] = np.where(draws, spread, 0.0)
    return frame.plan(base, update, draws=draws)
