"""DPM-Solver and DPM-Solver++, multistep, plain and stochastic (arXiv:2206.00927, 2211.01095).

With pictures as answers they are known as DPM++ 2M and, stochastic, DPM++ 2M SDE and 3M SDE.
"""

from __future__ import annotations

import numpy as np

from sfumato.diffusion.frame import Frame
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.adams import descending_orders
from sfumato.diffusion.samplers.exponential import leg
from sfumato.diffusion.samplers.moves import moving

ALGORITHMS: tuple[str, ...] = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


def dpm_multistep(
    frame: Frame,
    *,
    order: int = 2,
    image: bool = True,
    eta: float = 0.0,
    s_noise: float = 1.0,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    steps: int | None = None,
    more_curve: bool = False,
) -> Plan:
    """DPM-Solver, multistep; the default is what others call DPM++ 2M.

    Args:
        frame: of the run.
        order: 1 to 3; the first steps have as many answers as there are.
        image: extrapolate the picture (DPM-Solver++); otherwise the noise.
        eta: share of noise, see `exponential`: 0 or, as random as the ancestral methods, 1.
        s_noise: factor on the noise.
        solver_type: ``midpoint`` or ``heun``; how the second order counts the slope.
        lower_order_final: end with lower orders when the whole has fewer than 15 steps.
        euler_at_final: end with first order. A step to no noise at all always does.
        steps: steps of the whole, if ``frame`` is a part of it.
        more_curve: count the second differences of the third order once more, as diffusers does
            in ``sde-dpmsolver++``.
    """
    n = len(frame)
    few = lower_order_final and (n if steps is None else steps) < 15
    orders = descending_orders(n, order, few=few)
    if euler_at_final or np.isinf(frame.next.log_snr[-1]):
        orders[-1] = 1
    moves = []
    for row, count in enumerate(orders):
        here = slice(row, row + 1)
        step = leg(frame.now[here], frame.next[here], image=image, eta=eta)
        moments = step.moments(count)
        if count == 2 and solver_type == "midpoint":
            moments[1] = step.first / 2
        if count == 3:  # half of the second difference, as its authors do
            moments[2] = moments[2] / 2 - (step.scale if more_curve else 0)
        move = step.move(moments, frame.now.log_snr[row + 1 - count : row + 1][::-1])
        moves.append(move._replace(noises=[s_noise * noise for noise in move.noises]))
    return moving(frame, frame.answers(image=image), moves, draws=np.full(n, eta > 0))
