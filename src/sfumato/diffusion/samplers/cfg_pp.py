"""CFG++ (arXiv:2406.08070) in k-diffusion's samplers, as ComfyUI has them.

Guidance moves the picture that the network has in mind; the noise that is left in x shall yet be
that of the negative prompt, which no guidance has led astray. So wherever a sampler keeps a share
of x, x is first moved by what the guided picture differs from the negative one:

    x' = keep * (x + guided - negative) + (1 - keep) * (pictures of this call and earlier ones)

The samplers differ in which pictures these are. All work over sigma. Scales between 0.5 and 2 do
what larger ones do elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sfumato.diffusion.frame import Frame
from sfumato.diffusion.plan import BASE, DENOISED, NEGATIVE, NOISE, Plan, X
from sfumato.diffusion.samplers.exponential import leg
from sfumato.diffusion.samplers.moves import blank
from sfumato.diffusion.samplers.singlestep import step_down, two_calls
from sfumato.diffusion.schedule import Array, Levels


@dataclass(frozen=True)
class _Stride:
    """Where one step leads: down to ``end``, and up again with ``added`` noise.

    ``keep`` is the share of x that is kept on the way, the ratio of its sigmas.
    """

    end: Levels
    added: float
    keep: float


def _stride(frame: Frame, begin: int, row: int, eta: float) -> _Stride:
    start = frame.now[begin : begin + 1]
    end, added = step_down(start, frame.next[row : row + 1], eta)
    return _Stride(end, added, float(end.sigma[0] / start.sigma[0]))


def _moved(update: Array, keep: float, age: int = 0) -> None:
    """One row: x, moved by what the guided picture differs from the negative one, ``keep`` of it.

    x is the base; the pictures are those of the call of that age.
    """
    update[0, BASE] += keep
    update[age, DENOISED] += keep
    update[age, NEGATIVE] -= keep


def _plan(frame: Frame, base: Array, update: Array, added: list[float]) -> Plan:
    update[:, 0, NOISE] = added
    return frame.plan(base, update, draws=np.array(added) != 0)


def euler_cfg_pp(frame: Frame, *, eta: float = 0.0, s_noise: float = 1.0) -> Plan:
    """Euler's method: the guided picture, and the noise of the negative prompt.

    Args:
        frame: of the run, over sigma.
        eta: share of noise at the end of each step, as of ancestral methods.
        s_noise: factor on the noise.
    """
    base, update = blank(len(frame), 0, NEGATIVE + 1)
    added = []
    for row in range(len(frame)):
        stride = _stride(frame, row, row, eta)
        _moved(update[row], stride.keep)
        update[row, 0, DENOISED] += 1 - stride.keep
        added.append(s_noise * stride.added)
    return _plan(frame, base, update, added)


def dpmpp_2m_cfg_pp(frame: Frame) -> Plan:
    """DPM++ 2M: the slope is that from the last negative picture to this guided one."""
    base, update = blank(len(frame), 1, NEGATIVE + 1)
    lambdas = frame.now.log_snr
    for row in range(len(frame)):
        stride = _stride(frame, row, row, 0.0)
        _moved(update[row], stride.keep)
        update[row, 0, DENOISED] += 1 - stride.keep
        if row > 0 and stride.end.sigma[0] > 0:
            h, last = stride.end.log_snr[0] - lambdas[row], lambdas[row] - lambdas[row - 1]
            slope = (1 - stride.keep) * h / (2 * last)
            update[row, 0, DENOISED] += slope
            update[row, 1, NEGATIVE] -= slope
    return _plan(frame, base, update, [0.0] * len(frame))


def dpmpp_2s_cfg_pp(frame: Frame, *, eta: float = 1.0, s_noise: float = 1.0) -> Plan:
    """DPM++ 2S a: both calls of a step go on from x moved by the first one's pictures.

    Args:
        frame: of the run, over sigma, with calls as of `ways.with_middles`.
        eta: share of noise at the end of each step.
        s_noise: factor on the noise.
    """
    n, orders = len(frame), two_calls(len(frame))
    base, update = blank(n, 1, NEGATIVE + 1)
    added = []
    for row, order in enumerate(orders):
        ends = row + 1 == n or order == 2
        stride = _stride(frame, row - order + 1, row, eta if ends else 0.0)
        if order == 2:  # the step starts where the call before did
            base[row] = 0
            base[row, 1, BASE] = 1
        _moved(update[row], stride.keep, age=order - 1)
        update[row, 0, DENOISED] += 1 - stride.keep
        added.append(s_noise * stride.added if ends else 0.0)
    return _plan(frame, base, update, added)


def res_multistep_cfg_pp(frame: Frame, *, eta: float = 0.0, s_noise: float = 1.0) -> Plan:
    """RES multistep: extrapolates the negative pictures; the first and last step are Euler's.

    Args:
        frame: of the run, over sigma.
        eta: share of noise at the end of each step.
        s_noise: factor on the noise.
    """
    base, update = blank(len(frame), 1, NEGATIVE + 1)
    lambdas = frame.now.log_snr
    reached, added = float(lambdas[0]), []  # before its noise, where the last step has led
    for row in range(len(frame)):
        stride = _stride(frame, row, row, eta)
        _moved(update[row], stride.keep)
        if row == 0 or math.isinf(stride.end.log_snr[0]):
            update[row, 0, DENOISED] += 1 - stride.keep
        else:
            step = leg(frame.now[row : row + 1], stride.end, image=True)
            places = step.start + np.array([0.0, lambdas[row - 1] - reached])
            weights = step.move(step.moments(2), places).answers
            update[row, : len(weights), NEGATIVE] += weights
        reached = float(stride.end.log_snr[0])
        added.append(s_noise * stride.added)
    return _plan(frame, base, update, added)


def gradient_estimation_cfg_pp(frame: Frame, *, gamma: float = 2.0) -> Plan:
    """Gradient estimation: Euler's step, led on along the slope of the negative prompt.

    Args:
        frame: of the run, over sigma.
        gamma: how far to lead on; 1 is `euler_cfg_pp`.
    """
    base, update = blank(len(frame), 1, NEGATIVE + 1)
    sigma = frame.now.sigma
    for row in range(len(frame)):
        stride = _stride(frame, row, row, 0.0)
        _moved(update[row], stride.keep)
        update[row, 0, DENOISED] += 1 - stride.keep
        if row > 0 and stride.end.sigma[0] > 0:
            lead = (gamma - 1) * (stride.end.sigma[0] - sigma[row])
            for age, sign in ((0, 1), (1, -1)):
                weight = sign * lead / sigma[row - age]
                update[row, age, X] += weight
                update[row, age, NEGATIVE] -= weight
    return _plan(frame, base, update, [0.0] * len(frame))
