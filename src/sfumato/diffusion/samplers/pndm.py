"""Pseudo numerical methods: PNDM and PLMS (arXiv:2202.09778), the first samplers of the field.

Linear multistep methods on the predicted noise. The first steps, which have too few answers to
look back on, are Runge-Kutta steps of four calls each (PNDM), or one predictor step taken twice
(PLMS: the call count is one more than the step count).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfumato.diffusion.frame import Frame, as_trained, to_epsilon
from sfumato.diffusion.plan import BASE, OUTPUT, Plan, X
from sfumato.diffusion.samplers.moves import Move, blank, moving
from sfumato.diffusion.schedule import Array, Levels, Schedule

#: Adams-Bashforth weights by number of answers, newest first.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


class _Row(NamedTuple):
    """One call: the step that it makes, and the answers it uses, as ``{age: weight}``."""

    from_t: int
    to_t: int
    mix: dict[int, float]
    restart: bool


def pndm(
    timesteps: NDArray[np.int64],
    alphas_cumprod: Array,
    stride: int,
    *,
    final_alpha_cumprod: float,
    prediction: str = "epsilon",
    runge_kutta: NDArray[np.int64] | None = None,
) -> Plan:
    """PNDM, or PLMS without ``runge_kutta``.

    Args:
        timesteps: what to ask the network, call by call; for PLMS the second is usually there
            twice, and for PNDM the Runge-Kutta timesteps come first.
        alphas_cumprod: the training table.
        stride: training timesteps in one step.
        final_alpha_cumprod: level below timestep 0.
        prediction: what the network predicts.
        runge_kutta: timesteps of the whole run's Runge-Kutta calls.
    """
    rows = _plms_rows(timesteps, stride)
    if runge_kutta is not None:
        rows = _prk_rows(timesteps, stride, runge_kutta)
    depth = max((age for row in rows for age in row.mix), default=0)
    base, update = blank(len(rows), max(depth, 1))

    def levels(t: list[int]) -> Levels:
        values = [alphas_cumprod[i] if i >= 0 else final_alpha_cumprod for i in t]
        return Levels.from_alphas_cumprod(np.array(values))

    start, end = levels([row.from_t for row in rows]), levels([row.to_t for row in rows])
    epsilon = to_epsilon(start, prediction)
    keep = end.alpha / start.alpha
    push = end.sigma - keep * start.sigma
    for i, row in enumerate(rows):
        if row.restart:
            base[i, 0, X], base[i, 1, BASE] = 0, 1
        # The mixture of outputs is turned into noise at the point where the step starts.
        update[i, 0, BASE] = keep[i] + push[i] * epsilon[i, 0]
        for age, weight in row.mix.items():
            update[i, age, OUTPUT] = push[i] * epsilon[i, 1] * weight
    way = Schedule(timesteps, levels(timesteps.tolist()), end)
    return as_trained(way, prediction).plan(base, update)


def ipndm(frame: Frame) -> Plan:
    """PNDM without a start of its own: from fewer answers until there are four.

    Args:
        frame: of the run, as trained. Its first level may be pure noise: the step from there
            keeps the noise and nothing else.
    """
    now, following = frame.now, frame.next
    keep = following.alpha / np.maximum(now.alpha, 1e-8)
    push = following.sigma - keep * now.sigma
    weights = [ADAMS_BASHFORTH[min(row + 1, 4)] for row in range(len(frame))]
    moves = [Move(keep[i], [push[i] * weight for weight in w]) for i, w in enumerate(weights)]
    return moving(frame, frame.answers(image=False), moves)


def _plms_rows(timesteps: NDArray[np.int64], stride: int) -> list[_Row]:
    rows, kept = [], []
    for i, t in enumerate(timesteps.tolist()):
        if i == 1:  # the first step once more, with the mean of both its ends
            rows.append(_Row(t + stride, t, {0: 0.5, 1: 0.5}, restart=True))
            continue
        kept = [*kept[-3:], i]
        rows.append(_Row(t, t - stride, _adams_bashforth(i, kept), restart=False))
    return rows


def _prk_rows(
    timesteps: NDArray[np.int64], stride: int, runge_kutta: NDArray[np.int64]
) -> list[_Row]:
    rows, kept = [], []
    for i, t in enumerate(timesteps.tolist()):
        if i >= len(runge_kutta):
            kept = [*kept[-3:], i]
            rows.append(_Row(t, t - stride, _adams_bashforth(i, kept), restart=False))
            continue
        stage = i % 4
        if stage == 0:
            kept.append(i)
        to_t = t if i % 2 else t - stride // 2
        mix = {0: 1.0} if stage < 3 else dict(enumerate(RUNGE_KUTTA))
        rows.append(_Row(int(runge_kutta[i - stage]), to_t, mix, restart=stage > 0))
    return rows


def _adams_bashforth(row: int, kept: list[int]) -> dict[int, float]:
    weights = ADAMS_BASHFORTH[len(kept)]
    return {row - i: weight for i, weight in zip(reversed(kept), weights, strict=True)}
