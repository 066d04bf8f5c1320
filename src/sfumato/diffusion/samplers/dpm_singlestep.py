"""DPM-Solver and DPM-Solver++, singlestep: steps of one to three calls, each from the same point
(arXiv:2206.00927, 2211.01095)."""

from __future__ import annotations

import numpy as np

from sfumato.diffusion.plan import BASE, NOISE, Limit, Plan, X, blank, to_denoised
from sfumato.diffusion.samplers.dpm import answers, step_weights
from sfumato.diffusion.schedule import Levels, Schedule


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


def dpm_singlestep(
    schedule: Schedule,
    orders: list[int],
    prediction: str = "epsilon",
    *,
    algorithm: str = "dpmsolver++",
    solver_type: str = "midpoint",
    limit: Limit | None = None,
) -> Plan:
    """DPM-Solver, singlestep.

    Args:
        schedule: of the calls.
        orders: of each call, see `call_orders`; a run that begins within a step has the highest
            order that its calls so far allow.
        prediction: what the network predicts.
        algorithm: ``dpmsolver``, ``dpmsolver++`` or ``sde-dpmsolver++``.
        solver_type: ``midpoint`` or ``heun``.
        limit: dynamic thresholding of the denoised picture.
    """
    n = len(schedule)
    base, update = blank(n, max(max(orders) - 1, 1))
    memory = answers(
        schedule.now, prediction, as_image=algorithm.endswith("++"), limited=limit is not None
    )
    for row in range(n):
        order = min(orders[row], row + 1)
        if order > 1:
            base[row, 0, X], base[row, 1, BASE] = 0, 1
        keep, noise, mix = _step(schedule, row, order, algorithm, solver_type)
        update[row, 0, BASE], update[row, 0, NOISE] = keep, noise
        for age, weight in enumerate(mix):
            update[row, age] += weight * memory[row - age]
    return Plan(
        timesteps=schedule.timesteps,
        sigmas=schedule.now.ratio,
        input_scale=np.ones(n),
        denoised=to_denoised(schedule.now, prediction),
        base=base,
        update=update,
        draws=np.full(n, algorithm.startswith("sde")),
        limit=limit,
    )


def _step(
    schedule: Schedule, row: int, order: int, algorithm: str, solver_type: str
) -> tuple[float, float, list[float]]:
    """Weights of the starting point, of noise, and of the answers, newest first."""
    start = row - order + 1
    begin, end = _at(schedule.now, start), _at(schedule.next, row)
    kind = "heun" if order == 3 else solver_type
    weights = step_weights(algorithm, kind, begin, end)
    if order == 1:
        return weights.keep, weights.noise, [weights.first]
    lambdas = schedule.now.log_snr[start : row + 1] - begin.log_snr
    h = float((end.log_snr - begin.log_snr)[0])
    newest = h / lambdas[-1]  # slope from the start to the newest answer, scaled by h
    if order == 2:
        slope = weights.slope * newest
        return weights.keep, weights.noise, [slope, weights.first - slope]
    to_newest, to_middle = np.array([newest, 0, -newest]), np.array([0, 1, -1]) * h / lambdas[1]
    slope, curve = to_newest, np.zeros(3)
    if solver_type == "heun":
        r0, r1 = lambdas[2] / h, lambdas[1] / h
        slope = (r0 * to_middle - r1 * to_newest) / (r0 - r1)
        curve = 2 * (to_newest - to_middle) / (r0 - r1)
    mix = weights.slope * slope + weights.curve * curve
    mix[2] += weights.first
    return weights.keep, weights.noise, mix.tolist()


def _at(levels: Levels, row: int) -> Levels:
    return levels[row : row + 1]
