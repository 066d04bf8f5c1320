"""UniPC: a predictor, and a corrector that costs no call of the network (arXiv:2302.04867).

When the network has answered at a new point, the step that led there is taken again with that
answer known, from where it began. The corrected point is where the next step starts from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sfumato.diffusion.plan import BASE, Limit, Plan, X, blank, to_denoised
from sfumato.diffusion.samplers.dpm import answers
from sfumato.diffusion.schedule import Array, Levels, Schedule


def unipc(
    schedule: Schedule,
    prediction: str = "epsilon",
    *,
    order: int = 2,
    solver_type: str = "bh2",
    predict_x0: bool = True,
    lower_order_final: bool = True,
    disable_corrector: Sequence[int] = (),
    limit: Limit | None = None,
    start: int = 0,
) -> Plan:
    """UniPC multistep.

    Args:
        schedule: the way.
        prediction: what the network predicts.
        order: how many answers a step uses; the corrector uses one more.
        solver_type: ``bh1`` or ``bh2``, the function B(h) of the paper.
        predict_x0: extrapolate the picture; otherwise the noise.
        lower_order_final: end with order 2, then 1.
        disable_corrector: numbers of steps that are not corrected.
        limit: dynamic thresholding of the denoised picture, with ``predict_x0``.
        start: number of the first step, if ``schedule`` is the end of a longer way.
    """
    n = len(schedule)
    base, update = blank(n, max(min(order, n), 1))
    memory = answers(schedule.now, prediction, as_image=predict_x0)
    lambdas = np.append(schedule.now.log_snr, schedule.next.log_snr[-1])
    levels = _with_end(schedule)
    previous_order = 0
    for row in range(n):
        if row and start + row - 1 not in disable_corrector:
            keep, mix = _bh_step(
                levels, lambdas, row - 1, previous_order, solver_type, predict_x0, correct=True
            )
            base[row, 0, X] = 0
            base[row, 1, BASE] = keep
            for age, weight in enumerate(mix):
                base[row, age] += weight * memory[row - age]
        this = min(order, n - row) if lower_order_final else order
        previous_order = min(this, row + 1)
        keep, mix = _bh_step(
            levels, lambdas, row, previous_order, solver_type, predict_x0, correct=False
        )
        update[row, 0, BASE] = keep
        for age, weight in enumerate(mix[1:]):
            update[row, age] += weight * memory[row - age]
    return Plan(
        timesteps=schedule.timesteps,
        sigmas=schedule.now.ratio,
        input_scale=np.ones(n),
        denoised=to_denoised(schedule.now, prediction),
        base=base,
        update=update,
        draws=np.zeros(n, dtype=bool),
        limit=limit if predict_x0 else None,
    )


def _with_end(schedule: Schedule) -> Levels:
    return Levels(
        np.append(schedule.now.alpha, schedule.next.alpha[-1]),
        np.append(schedule.now.sigma, schedule.next.sigma[-1]),
    )


def _bh_step(
    levels: Levels,
    lambdas: Array,
    row: int,
    order: int,
    solver_type: str,
    predict_x0: bool,
    *,
    correct: bool,
) -> tuple[float, list[float]]:
    """The step from level ``row`` to ``row + 1`` (equations 8 and 9 of the paper).

    Returns:
        The weight of the point where the step starts, and weights of answers: first the one at
        the end of the step (0 when predicting), then those at ``row``, ``row - 1`` and so on.
    """
    h = lambdas[row + 1] - lambdas[row]
    if h == 0:
        return 1.0, [0.0] * (order + 1)
    part = levels.sigma if predict_x0 else levels.alpha
    scale = levels.alpha[row + 1] if predict_x0 else levels.sigma[row + 1]
    hh = -h if predict_x0 else h
    growth = float(np.expm1(hh))
    if np.isinf(h):  # the step ends at the denoised picture
        first = scale if predict_x0 else -part[row + 1] * levels.sigma[row] / part[row]
        return part[row + 1] / part[row], [0.0, first] + [0.0] * (order - 1)
    mix = [0.0, -scale * growth] + [0.0] * (order - 1)
    bh = hh if solver_type == "bh1" else growth
    ratios = np.array([(lambdas[row - i] - lambdas[row]) / h for i in range(1, order)])
    for i, rho in enumerate(_rhos(ratios, hh, bh, order, correct=correct)):
        at_end = i == order - 1
        weight = -scale * bh * rho / (1.0 if at_end else ratios[i])
        mix[0 if at_end else i + 2] += weight
        mix[1] -= weight
    return part[row + 1] / part[row], mix


def _rhos(ratios: Array, hh: float, bh: float, order: int, *, correct: bool) -> Array:
    """Weights of the divided differences; those of low order are 1/2, as the authors set them."""
    unknowns = order if correct else order - 1
    if unknowns == 0:
        return np.zeros(0)
    if unknowns == 1:
        return np.array([0.5])
    points = np.append(ratios, 1.0)
    phi, factorial, right = np.expm1(hh) / hh - 1, 1, []
    for i in range(1, order + 1):
        right.append(phi * factorial / bh)
        factorial *= i + 1
        phi = phi / hh - 1 / factorial
    matrix = np.stack([points ** (i - 1) for i in range(1, order + 1)])
    return np.linalg.solve(matrix[:unknowns, :unknowns], np.array(right[:unknowns]))
