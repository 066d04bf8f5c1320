"""Linear multistep methods on exponential integrators: DEIS, UniPC and SA-Solver.

The predictor draws a polynomial through the last answers (Adams-Bashforth). UniPC and SA-Solver add
a corrector that costs no call of the network (Adams-Moulton): when the network has answered at a
new point, the step that led there is taken again with that answer known, from where it began. The
corrected point is where the next step starts from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sfumato.diffusion.frame import Frame
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.exponential import Leg, leg
from sfumato.diffusion.samplers.moves import Move, moving
from sfumato.diffusion.schedule import Array


def deis(
    frame: Frame, *, order: int = 2, lower_order_final: bool = True, steps: int | None = None
) -> Plan:
    """Diffusion exponential integrator sampler, log-rho variant (arXiv:2204.13902).

    Args:
        frame: of the run; it must not end at no noise.
        order: how many answers, 1 to 3.
        lower_order_final: end with lower orders when the whole has fewer than 15 steps.
        steps: steps of the whole, if ``frame`` is a part of it.
    """
    few = lower_order_final and (len(frame) if steps is None else steps) < 15
    orders = descending_orders(len(frame), order, few=few)
    moves = [predict(frame, row, count, image=False) for row, count in enumerate(orders)]
    return moving(frame, frame.answers(image=False), moves)


def unipc(
    frame: Frame,
    *,
    order: int = 2,
    solver_type: str = "bh2",
    predict_x0: bool = True,
    lower_order_final: bool = True,
    disable_corrector: Sequence[int] = (),
    start: int = 0,
) -> Plan:
    """UniPC (arXiv:2302.04867).

    Args:
        frame: of the run.
        order: how many answers the predictor uses; the corrector uses one more.
        solver_type: ``bh1`` or ``bh2``, the function B(h) of the paper. It matters where two
            answers are used.
        predict_x0: extrapolate the picture; otherwise the noise.
        lower_order_final: end with order 2, then 1.
        disable_corrector: numbers of steps that are not corrected.
        start: number of the first step, if ``frame`` is the end of a longer way.
    """
    n = len(frame)
    slope = "linear" if solver_type == "bh1" else "half"
    counts = [min(order, row + 1, n - row if lower_order_final else n) for row in range(n)]
    moves = [predict(frame, row, counts[row], image=predict_x0, slope=slope) for row in range(n)]
    starts: list[Move | None] = [
        correct(frame, row, counts[row - 1] + 1, image=predict_x0, slope=slope)
        if row and start + row - 1 not in disable_corrector
        else None
        for row in range(n)
    ]
    memory = frame.answers(image=predict_x0, limited=False)
    return moving(frame, memory, moves, starts)


def sa_solver(
    frame: Frame,
    tau: Array,
    *,
    predictor_order: int = 2,
    corrector_order: int = 2,
    image: bool = True,
    lower_order_final: bool = True,
) -> Plan:
    """Stochastic Adams solver (arXiv:2309.05019).

    Args:
        frame: of the run.
        tau: ``(n,)``, how random each step is: 0 is deterministic, 1 as random as DDPM.
        predictor_order: how many answers the predictor uses, 1 to 4.
        corrector_order: how many the corrector uses, the new one among them; 1 to 4.
        image: extrapolate the picture; otherwise the noise.
        lower_order_final: end with lower orders.
    """
    n, eta = len(frame), tau**2
    slope = "linear" if image else "exact"
    moves, starts = [], []
    for row in range(n):
        left = n - row if lower_order_final else n
        count = min(predictor_order, left, row + 1)
        moves.append(predict(frame, row, count, image=image, eta=eta[row], slope=slope))
        count = min(corrector_order, left + 2, row + 1)
        how = {"image": image, "eta": eta[row - 1], "slope": slope}
        starts.append(correct(frame, row, count, **how) if row else None)
    draws = np.ones(n, dtype=bool)
    return moving(frame, frame.answers(image=image), moves, starts, draws=draws)


def predict(
    frame: Frame, row: int, count: int, *, image: bool, eta: float = 0.0, slope: str = "exact"
) -> Move:
    """The step of a row, with its answer and those before.

    Args:
        frame: of the run.
        row: which row.
        count: how many answers.
        image: whether answers are pictures or noises.
        eta: share of noise, see `exponential`.
        slope: how two answers are integrated: ``exact``, or as if the exponential was 1
            (``linear``), or by their mean (``half``). More than two always exactly.
    """
    step = leg(frame.now[row : row + 1], frame.next[row : row + 1], image=image, eta=eta)
    return _through(step, frame.now.log_snr[row + 1 - count : row + 1][::-1], slope)


def correct(
    frame: Frame, row: int, count: int, *, image: bool, eta: float = 0.0, slope: str = "exact"
) -> Move:
    """The step that led to a row, with the row's own answer; arguments as of `predict`."""
    step = leg(frame.now[row - 1 : row], frame.now[row : row + 1], image=image, eta=eta)
    move = _through(step, frame.now.log_snr[row + 1 - count : row + 1][::-1], slope)
    return move._replace(noises=(0.0, *move.noises))  # the noise that the step drew


def _through(step: Leg, lambdas: Array, slope: str) -> Move:
    moments = step.moments(len(lambdas))
    if len(lambdas) == 2 and slope != "exact":
        moments[1] = step.linear if slope == "linear" else step.first / 2
    return step.move(moments, lambdas)


def descending_orders(steps: int, order: int, *, few: bool) -> list[int]:
    """The order of each step: rising as answers come in; with ``few``, falling at the end."""
    orders = [min(order, row + 1) for row in range(steps)]
    if few:
        orders[-2:] = [min(2, this) for this in orders[-2:]]
        orders[-1] = 1
    return orders
