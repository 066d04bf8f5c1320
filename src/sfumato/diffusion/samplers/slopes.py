"""Methods that follow slopes over sigma, the noise that the network has in mind, as ComfyUI and
A1111 offer them: gradient estimation, IPNDM with steps of any size, Heun++ and Restart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sfumato.diffusion.frame import Frame
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.moves import BACK, Move, moving
from sfumato.diffusion.samplers.singlestep import two_calls
from sfumato.diffusion.schedule import Array


def gradient_estimation(frame: Frame, *, gamma: float = 2.0) -> Plan:
    """Euler's method along a slope that is led on from the last one (arXiv:2306.04848).

    Args:
        frame: of the run, over sigma.
        gamma: how far to lead on; 1 is Euler's method.
    """
    lengths = frame.next.sigma - frame.now.sigma
    moves = [Move(1.0, [h * gamma, h * (1 - gamma)]) for h in lengths]
    moves[0] = Move(1.0, [lengths[0]])
    if frame.next.sigma[-1] == 0:
        moves[-1] = Move(1.0, [lengths[-1]])
    return moving(frame, frame.answers(image=False), moves)


def ipndm_v(frame: Frame) -> Plan:
    """Adams and Bashforth's method of up to fourth order for steps of different sizes.

    Its weights are those of the programs that have it, which are exact for even steps and in the
    second order; the last step, to no noise, is Euler's.
    """
    lengths = frame.next.sigma - frame.now.sigma
    moves = []
    for row, h in enumerate(lengths):
        order = 1 if frame.next.sigma[row] == 0 else min(4, row + 1)
        past = lengths[row - order + 1 : row][::-1]
        moves.append(Move(1.0, [h * weight for weight in _slope_weights(h, past)]))
    return moving(frame, frame.answers(image=False), moves)


def _slope_weights(h: float, past: Array) -> Sequence[float]:
    """Weights of the slopes, newest first, for a step ``h`` after steps ``past``, newest first."""
    weights = np.zeros(4)
    weights[0] = 1
    h1, h2, h3 = [*past, *[0.0] * (3 - len(past))]
    if len(past) > 0:
        weights[:2] += h / h1 / 2, -h / h1 / 2
    if len(past) > 1:
        second = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
        weights[:3] += second * np.array([1, -1 - h1 / h2, h1 / h2])
    if len(past) > 2:
        share = (1 - h / (3 * (h + h1))) / 2
        share += (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
        reach = h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        far = h1 * (h1 + h2) / (h2 * (h2 + h3))
        near = h1 / h2
        third = np.array([1, -1 - near - far, near + far * (1 + h2 / h3), -far * near])
        weights += share * reach * third
    return weights[: len(past) + 1].tolist()


def heun_pp(frame: Frame) -> Plan:
    """Heun++: slopes here, a step ahead and two steps ahead, weighted by their sigmas.

    A step has three calls, the last but one two, and the last one; see `ways.with_calls_ahead`.

    Args:
        frame: of the run, over sigma, from the beginning of a step.
    """
    sigma, first = frame.now.sigma, frame.now.sigma[0]
    moves: list[Move] = []
    starts: list[Move | None] = []
    for row, place in enumerate(places_of_calls(len(frame))):
        begin = row - place
        step = frame.next.sigma[begin] - sigma[begin]
        ahead = sigma[begin + 1 : row + 1] / (first * (place + 1))
        if place == 1 and _has_third(row, len(frame)):  # the second only leads to the third
            move = Move(1.0, [frame.next.sigma[row] - sigma[row], step])
        else:
            move = Move(1.0, [*(step * ahead[::-1]), step * (1 - ahead.sum())])
        moves.append(move)
        starts.append(BACK if place else None)
    return moving(frame, frame.answers(image=False), moves, starts)


def places_of_calls(calls: int) -> list[int]:
    """For each of so many calls its number within its step: 0, 1, 2, 0, 1, 2, ... 0, 1, 0."""
    return [row % 3 for row in range(calls - 1)] + [0]


def _has_third(row: int, calls: int) -> bool:
    return row + 2 < calls


def restart(frame: Frame, *, s_noise: float = 1.0) -> Plan:
    """Heun's method on a way that goes back up (arXiv:2306.14878); noise lifts x where it does.

    Args:
        frame: of the run, over sigma, with two calls for each step; see `ways.with_restarts`.
        s_noise: factor on the noise.
    """
    sigma, n = frame.now.sigma, len(frame)
    orders = two_calls(n)
    moves = []
    for row, order in enumerate(orders):
        step = frame.next.sigma[row] - sigma[row - order + 1]
        lifted = 0.0
        if row + 1 < n and orders[row + 1] == 1:
            lifted = s_noise * np.sqrt(max(sigma[row + 1] ** 2 - frame.next.sigma[row] ** 2, 0.0))
        moves.append(Move(1.0, [step / order] * order, [lifted] if lifted else ()))
    starts = [BACK if order > 1 else None for order in orders]
    draws = np.array([bool(move.noises) for move in moves])
    return moving(frame, frame.answers(image=False), moves, starts, draws=draws)
