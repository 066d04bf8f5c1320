"""Diffusion exponential integrator sampler, log-rho variant (arXiv:2204.13902)."""

from __future__ import annotations

import math

import numpy as np

from sfumato.diffusion.plan import BASE, Limit, Plan, blank, to_denoised
from sfumato.diffusion.samplers.dpm import answers, descending_orders
from sfumato.diffusion.samplers.lms import lagrange
from sfumato.diffusion.schedule import Array, Schedule


def deis(
    schedule: Schedule,
    prediction: str = "epsilon",
    *,
    order: int = 2,
    lower_order_final: bool = True,
    limit: Limit | None = None,
    steps: int | None = None,
) -> Plan:
    """Integrate the polynomial through the last noises, over ``rho = sigma / alpha``.

    Args:
        schedule: the way; it must not end at no noise.
        prediction: what the network predicts.
        order: 1 to 3 answers.
        lower_order_final: end with lower orders when the whole has fewer than 15 steps.
        limit: dynamic thresholding of the denoised picture.
        steps: steps of the whole, if ``schedule`` is a part of it.
    """
    n = len(schedule)
    few = lower_order_final and (n if steps is None else steps) < 15
    base, update = blank(n, max(min(order, n) - 1, 0))
    memory = answers(schedule.now, prediction, as_image=False, limited=limit is not None)
    logs, ends = np.log(schedule.now.ratio), np.log(schedule.next.ratio)
    update[:, 0, BASE] = schedule.next.alpha / schedule.now.alpha
    for row, this in enumerate(descending_orders(n, order, few=few)):
        nodes = logs[row - this + 1 : row + 1][::-1]
        for age in range(this):
            weight = schedule.next.alpha[row] * exponential_integral(nodes, age, ends[row])
            update[row, age] += weight * memory[row - age]
    return Plan(
        timesteps=schedule.timesteps,
        sigmas=schedule.now.ratio,
        input_scale=np.ones(n),
        denoised=to_denoised(schedule.now, prediction),
        base=base,
        update=update,
        draws=np.zeros(n, dtype=bool),
        limit=limit,
    )


def exponential_integral(nodes: Array, which: int, end: float) -> float:
    """Integral of ``exp(u) * lagrange(u)`` from ``nodes[0]`` to ``end``."""
    # By parts, as often as the polynomial has derivatives; around the start, where it is exact.
    polynomial = lagrange(nodes - nodes[0], which)
    h, total, sign = end - nodes[0], 0.0, 1.0
    for _ in range(len(nodes)):
        total += sign * (math.exp(h) * polynomial(h) - polynomial(0.0))
        polynomial, sign = polynomial.deriv(), -sign
    return math.exp(nodes[0]) * total
