"""Refined multistep methods on pictures: RES and the extended reverse-time equation's solver."""

from __future__ import annotations

from typing import Any

import numpy as np

from sfumato.diffusion.frame import Frame
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.exponential import leg
from sfumato.diffusion.samplers.moves import Move, moving
from sfumato.diffusion.samplers.singlestep import step_down
from sfumato.diffusion.schedule import Array

#: Points by which `er_sde` takes its integrals.
_POINTS = 200


def res_multistep(frame: Frame, *, eta: float = 0.0, s_noise: float = 1.0) -> Plan:
    """Refined exponential solver, multistep of second order (arXiv:2308.02157).

    Args:
        frame: of the run.
        eta: share of noise at the end of each step, as of ancestral methods.
        s_noise: factor on the noise.
    """
    moves = []
    reached = float(frame.now.log_snr[0])  # before its noise, where the last step has led
    for row in range(len(frame)):
        here = slice(row, row + 1)
        end, added = step_down(frame.now[here], frame.next[here], eta)
        step = leg(frame.now[here], end, image=True)
        lambdas = step.start + np.array([0.0, frame.now.log_snr[row - 1] - reached])
        known = 1 if row == 0 or np.isinf(step.length) else 2
        move = step.move(step.moments(known), lambdas[:known])
        moves.append(move._replace(noises=(s_noise * added,) if added else ()))
        reached = float(end.log_snr[0])
    draws = np.array([bool(move.noises) for move in moves])
    return moving(frame, frame.answers(image=True), moves, draws=draws)


def er_sde(frame: Frame, *, s_noise: float = 1.0) -> Plan:
    """Extended reverse-time SDE solver of third order (arXiv:2309.06169), over sigma.

    Its noise is that of the function which the paper's authors recommend, ``noise_scale``; it
    cannot be lessened but by ``s_noise``.

    Args:
        frame: of the run, over sigma.
        s_noise: factor on the noise.
    """
    sigma = frame.now.sigma
    moves = []
    for row, (here, end) in enumerate(zip(sigma, frame.next.sigma, strict=True)):
        if end == 0:
            moves.append(Move(0.0, (1.0,)))
            continue
        keep = noise_scale(end) / noise_scale(here)
        answers = np.zeros(min(row, 2) + 1)
        answers[0] = 1 - keep
        slope, curve = _integrals(here, end)
        if row > 0:
            answers[:2] += slope * _first_difference(sigma[row - 1 : row + 1])
        if row > 1:
            answers += curve * _second_difference(sigma[row - 2 : row + 1])
        noise = s_noise * np.sqrt(max(end**2 - (here * keep) ** 2, 0.0))
        moves.append(Move(keep, answers.tolist(), (noise,)))
    draws = np.array([bool(move.noises) for move in moves])
    return moving(frame, frame.answers(image=True), moves, draws=draws)


def noise_scale(sigma: Any) -> Any:
    """The function of sigma, a number or an array, that says how much noise `er_sde` adds."""
    return sigma * (np.exp(sigma**0.3) + 10.0)


def _integrals(here: float, end: float) -> tuple[float, float]:
    """What the first and second derivative of the picture count for in a step."""
    width = (here - end) / _POINTS
    places = end + np.arange(_POINTS) * width
    first, scale = -(here - end), noise_scale(end)
    slope = first + scale * (width / noise_scale(places)).sum()
    curve = first**2 / 2 + scale * (width * (places - here) / noise_scale(places)).sum()
    return float(slope), float(curve)


def _first_difference(sigma: Array) -> Array:
    """Weights of two answers, newest first, in their derivative; ``sigma`` is oldest first."""
    return np.array([1.0, -1.0]) / (sigma[1] - sigma[0])


def _second_difference(sigma: Array) -> Array:
    newer, older = _first_difference(sigma[1:]), _first_difference(sigma[:2])
    return np.array([newer[0], newer[1] - older[0], -older[1]]) * 2 / (sigma[2] - sigma[0])
