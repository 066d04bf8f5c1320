"""Singlestep methods: one to three calls for a step, each from the point where the step starts.

DPM-Solver and DPM-Solver++ of that kind (arXiv:2206.00927, 2211.01095), and under other names:

    Heun            noises, midpoint rule, the second call at the end of the step
    DPM2            noises, midpoint rule, the second call in the middle (in lambda)
    DPM++ 2S        the same with pictures
    DPM++ SDE       the same with pictures, and noise at both calls
    DPM fast        noises, third order

DPM2 and DPM++ 2S have ancestral variants, which go down further and add noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sfumato.diffusion.frame import Frame
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.exponential import Leg, leg
from sfumato.diffusion.samplers.moves import BACK, Move, moving
from sfumato.diffusion.schedule import Array, Levels


def call_orders(steps: int, order: int, *, lower_order_final: bool, ends_clean: bool) -> list[int]:
    """Which order each call completes: 1, 2, 3, 1, 2, 3 and so on.

    Args:
        steps: number of calls.
        order: 1 to 3, of the method.
        lower_order_final: end with lower orders, and so allow any number of calls.
        ends_clean: the last call, to no noise at all, is of order 1.
    """
    orders = [1 + i % order for i in range(steps)]
    if lower_order_final and order > 1:
        if order == 3 and steps % 3 == 0:
            orders[-3:] = [1, 2, 1]
        elif order == 2 and steps % 2 == 0:
            orders[-2:] = [1, 1]
    if ends_clean:
        orders[-1] = 1
    return orders


def two_calls(calls: int) -> list[int]:
    """Orders of the calls of steps that have two each, and only one in the last."""
    return [1 + row % 2 for row in range(calls)]


def orders_in_thirds(calls: int) -> list[int]:
    """Orders of the calls of DPM fast: steps of three, and one or two smaller ones at the end."""
    whole, rest = divmod(calls, 3)
    steps = [3] * whole + [rest] if rest else [3] * (whole - 1) + [2, 1]
    return [place + 1 for size in steps for place in range(size)]


def singlestep(
    frame: Frame,
    orders: Sequence[int],
    *,
    image: bool = True,
    eta: float = 0.0,
    ancestral: float = 0.0,
    brownian: bool = False,
    s_noise: float = 1.0,
    solver_types: str | Sequence[str] = "midpoint",
    more_curve: bool = False,
) -> Plan:
    """DPM-Solver, singlestep.

    Args:
        frame: of the run; ``next`` is where the result of each call lies.
        orders: of each call, see `call_orders`; a run that begins within a step has the highest
            order that its calls so far allow.
        image: extrapolate the picture (DPM-Solver++); otherwise the noise.
        eta: share of noise (that of DDIM) at every call, for pictures.
        ancestral: share of noise at the end of every step.
        brownian: what the later calls of a step add is one Brownian path with what the first
            one added; otherwise it is new.
        s_noise: factor on the noise.
        solver_types: ``midpoint`` or ``heun``; how a call of second or third order counts the
            slope. One for all, or for each call.
        more_curve: count the second differences of ``heun``'s third order twice more, as diffusers
            does in ``sde-dpmsolver++``.
    """
    n = len(frame)
    types = [solver_types] * n if isinstance(solver_types, str) else solver_types
    orders = [min(order, row + 1) for row, order in enumerate(orders)]
    moves: list[Move] = []
    for row, order in enumerate(orders):
        begin, end = row - order + 1, frame.next[row : row + 1]
        added = 0.0
        if ancestral and (row + 1 == n or orders[row + 1] == 1):
            end, added = step_down(frame.now[begin : begin + 1], end, ancestral)
        move = _move(frame, row, order, end, image, eta, types[row], more_curve)
        noises: Sequence[float] = move.noises or [added]
        if brownian and order > 1:
            noises = _along(frame.now.sigma[begin : row + 1], end.sigma, noises[0])
        moves.append(move._replace(noises=[s_noise * noise for noise in noises]))
    return moving(
        frame,
        frame.answers(image=image),
        moves,
        [BACK if order > 1 else None for order in orders],
        draws=np.array([any(move.noises) or (eta > 0 and not brownian) for move in moves]),
    )


def step_down(start: Levels, end: Levels, eta: float) -> tuple[Levels, float]:
    """An ancestral step: the level to go down to, and the noise to add on it to reach ``end``.

    With ``eta`` of 1 that is the noise of the forward process between the levels, given the
    picture; smaller ones are shares of it (arXiv:2010.02502, equation 16).
    """
    ratio = end.ratio / start.ratio
    added = eta * end.sigma * np.sqrt(1 - ratio**2)
    return Levels(end.alpha, np.sqrt(end.sigma**2 - added**2)), float(added[0])


def _move(
    frame: Frame,
    row: int,
    order: int,
    end: Levels,
    image: bool,
    eta: float,
    solver_type: str,
    more_curve: bool,
) -> Move:
    """From the start of the step, with the answers since, to ``end``."""
    begin = row - order + 1
    if 0 < eta < 1:  # as a share of what the stochastic equation adds on the way
        h = float(end.log_snr[0] - frame.now.log_snr[begin])
        eta = -math.log1p(eta**2 * math.expm1(-2 * h)) / (2 * h)
    step = leg(frame.now[begin : begin + 1], end, image=image, eta=eta)
    lambdas = frame.now.log_snr[begin : row + 1][::-1]
    return call_move(step, lambdas, solver_type, more_curve=more_curve)


def call_move(step: Leg, lambdas: Array, solver_type: str, *, more_curve: bool = False) -> Move:
    """What a call does with the answers of its step so far.

    Args:
        step: from the step's start to the call's end.
        lambdas: where the answers were given, newest first; as many as the order.
        solver_type: see `singlestep`.
        more_curve: see `singlestep`.
    """
    order = len(lambdas)
    if order < 3 or solver_type == "heun":
        moments = step.moments(order)
        if order == 3 and more_curve:
            moments[2] -= 2 * step.scale
        if order == 2 and solver_type == "midpoint":
            moments[1] = step.first / 2
        return step.move(moments, lambdas)
    newest, oldest = step.move(step.moments(2), lambdas[[0, 2]]).answers  # without the middle
    return step.move(step.moments(1), lambdas[2:])._replace(answers=[newest, 0.0, oldest])


def _along(sigmas: Array, end: Array, noise: float) -> list[float]:
    """Noise of a Brownian path over sigma, by what its calls drew; newest first."""
    lengths = -np.diff(np.append(sigmas, end))
    return [noise * math.sqrt(share) for share in (lengths / lengths.sum())[::-1]]
