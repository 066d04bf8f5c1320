"""DPM-Solver and DPM-Solver++, multistep, plain and stochastic (arXiv:2206.00927, 2211.01095).

The solvers walk in ``lambda = log(alpha / sigma)``. One step of length ``h`` from level ``s`` to
level ``t`` treats the picture's dependence on what the network says exactly, and what the network
says as a polynomial through its last answers:

    x_t = keep * x_s + first * D0 + slope * D1 + curve * D2

with D0 the last answer and D1, D2 its divided differences, scaled by ``h``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sfumato.diffusion.plan import (
    BASE,
    DENOISED,
    NOISE,
    OUTPUT,
    Column,
    Limit,
    Plan,
    X,
    blank,
    to_denoised,
    to_epsilon,
)
from sfumato.diffusion.schedule import Array, Levels, Schedule

ALGORITHMS: tuple[str, ...] = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


class Weights(NamedTuple):
    """What one step multiplies; see the module's formula. ``noise`` is 0 unless stochastic."""

    keep: float
    first: float
    slope: float
    curve: float
    noise: float


def answers(now: Levels, prediction: str, *, as_image: bool, limited: bool = False) -> Array:
    """Weights ``(n, 5)`` over `Column` of what a solver remembers of each call.

    Args:
        now: levels of the calls.
        prediction: what the network predicts.
        as_image: remember the denoised picture; otherwise the noise.
        limited: derive the noise from the denoised picture after its limit.
    """
    weights = np.zeros((len(now.alpha), len(Column)))
    if as_image:
        weights[:, DENOISED] = 1
    elif limited:
        weights[:, X] = 1 / now.sigma
        weights[:, DENOISED] = -now.alpha / now.sigma
    else:
        weights[:, [X, OUTPUT]] = to_epsilon(now, prediction)
    return weights


def step_weights(algorithm: str, solver_type: str, s: Levels, t: Levels) -> Weights:
    """Weights of the step from level ``s`` to level ``t``; ``solver_type`` shapes second order."""
    alpha, sigma = float(t.alpha[0]), float(t.sigma[0])
    h = float((t.log_snr - s.log_snr)[0])
    stochastic, image = algorithm.startswith("sde"), algorithm.endswith("++")
    if image:
        z = -2 * h if stochastic else -h
        keep = sigma / float(s.sigma[0]) * (math.exp(-h) if stochastic else 1.0)
        scale, spread = -alpha, -math.expm1(-2 * h)
    else:
        z = h
        keep = alpha / float(s.alpha[0])
        scale, spread = -sigma * (2.0 if stochastic else 1.0), math.expm1(2 * h)
    first = scale * math.expm1(z)
    slope = 0.5 * first if solver_type == "midpoint" else scale * phi2(z)
    curve = scale * phi3(z)
    if stochastic and image:
        # The series has phi3 alone. diffusers has one more, and its pictures are the standard.
        curve += scale
    noise = sigma * math.sqrt(max(spread, 0.0)) if stochastic else 0.0
    return Weights(keep, first, slope, curve, noise)


def phi2(z: float) -> float:
    """``(exp(z) - 1) / z - 1``; 0 at 0, and where a step ends without noise."""
    return math.expm1(z) / z - 1 if z and math.isfinite(z) else 0.0


def phi3(z: float) -> float:
    """``(exp(z) - 1 - z) / z**2 - 1/2``; 0 at 0, and where a step ends without noise."""
    return (math.expm1(z) - z) / z**2 - 0.5 if z and math.isfinite(z) else 0.0


def dpm_multistep(
    schedule: Schedule,
    prediction: str = "epsilon",
    *,
    order: int = 2,
    algorithm: str = "dpmsolver++",
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    limit: Limit | None = None,
    steps: int | None = None,
) -> Plan:
    """DPM-Solver, multistep; the default is what others call DPM++ 2M.

    Args:
        schedule: the way.
        prediction: what the network predicts.
        order: 1 to 3; the first steps have as many answers as there are.
        algorithm: one of `ALGORITHMS`; ``++`` extrapolates the picture, otherwise the noise;
            ``sde-`` adds noise at every step.
        solver_type: ``midpoint`` or ``heun``.
        lower_order_final: end with lower orders when the whole has fewer than 15 steps.
        euler_at_final: end with first order. A step to no noise at all always does.
        limit: dynamic thresholding of the denoised picture.
        steps: steps of the whole, if ``schedule`` is a part of it.
    """
    n = len(schedule)
    few = lower_order_final and (n if steps is None else steps) < 15
    depth = max(min(order, n) - 1, 0)
    base, update = blank(n, depth)
    memory = answers(
        schedule.now, prediction, as_image=algorithm.endswith("++"), limited=limit is not None
    )
    lambdas = schedule.now.log_snr
    last_lambda = schedule.next.log_snr[-1]
    orders = descending_orders(n, order, few=few)
    if euler_at_final or np.isinf(last_lambda):
        orders[-1] = 1
    for row, this in enumerate(orders):
        kind = "heun" if this == 3 else solver_type
        here = slice(row, row + 1)
        weights = step_weights(algorithm, kind, schedule.now[here], schedule.next[here])
        end = lambdas[row + 1] if row + 1 < n else last_lambda
        mix = polynomial(weights, end, lambdas[max(row - 2, 0) : row + 1][::-1], this)
        update[row, 0, BASE] = weights.keep
        update[row, 0, NOISE] = weights.noise
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
        noise_in_float32=True,
    )


def descending_orders(steps: int, order: int, *, few: bool) -> list[int]:
    """The order of each step: rising as answers come in; with ``few``, falling at the end."""
    orders = [min(order, row + 1) for row in range(steps)]
    if few:
        orders[-2:] = [min(2, this) for this in orders[-2:]]
        orders[-1] = 1
    return orders


def polynomial(weights: Weights, end: float, lambdas: Array, order: int) -> list[float]:
    """Weights of the last ``order`` answers, newest first.

    Args:
        weights: of the step.
        end: lambda at the end of the step.
        lambdas: where the answers were given, newest first.
        order: how many to use.
    """
    if order == 1 or lambdas[0] == lambdas[1]:
        return [weights.first]
    h, h0 = end - lambdas[0], lambdas[0] - lambdas[1]
    if order == 2 or lambdas[1] == lambdas[2]:
        return [weights.first + weights.slope * h / h0, -weights.slope * h / h0]
    h1 = lambdas[1] - lambdas[2]
    newer = np.array([1.0, -1.0, 0.0]) * h / h0
    older = np.array([0.0, 1.0, -1.0]) * h / h1
    slope = newer + (newer - older) * h0 / (h0 + h1)
    curve = (newer - older) * h / (h0 + h1)
    first = np.array([weights.first, 0.0, 0.0])
    return (first + weights.slope * slope + weights.curve * curve).tolist()
