"""Denoising diffusion implicit models (arXiv:2010.02502); over sigma, Euler's method."""

from __future__ import annotations

import numpy as np

from sfumato.diffusion.frame import Frame
from sfumato.diffusion.plan import DENOISED, NOISE, Plan
from sfumato.diffusion.samplers.moves import blank
from sfumato.errors import InputError


def ddim(
    frame: Frame, *, eta: float = 0.0, s_noise: float = 1.0, noise_from_limited: bool = False
) -> Plan:
    """DDIM, equation 12: the picture, the noise that leads to it, and fresh noise.

    Over sigma, with ``eta`` of 0 it is Euler's method, and of 1 the ancestral one.

    Args:
        frame: of the run; ``next`` may differ from ``now`` shifted by one, and may be noisier.
        eta: 0 is deterministic, 1 is as random as DDPM.
        s_noise: factor on the fresh noise.
        noise_from_limited: derive the noise direction from the limited ``denoised`` instead of
            the network's output (``use_clipped_model_output`` of diffusers).

    Raises:
        InputError: for ``eta`` out of range.
    """
    if not 0 <= eta <= 1:
        raise InputError(f"`eta` has to be between 0 and 1 but is {eta}.")
    now, following = frame.now, frame.next
    spread = np.zeros(len(frame))
    if eta > 0:
        spread = eta * following.sigma * np.sqrt(1 - (following.ratio / now.ratio) ** 2)
    direction = np.sqrt(following.sigma**2 - spread**2)
    base, update = blank(len(frame))
    noises = frame.answers(image=False, limited=noise_from_limited)
    update[:, 0] = direction[:, None] * noises
    update[:, 0, DENOISED] += following.alpha
    update[:, 0, NOISE] = s_noise * spread
    return frame.plan(base, update, draws=np.full(len(frame), eta > 0))
