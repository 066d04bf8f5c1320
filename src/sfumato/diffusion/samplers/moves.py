"""How the samplers with a memory fill in their tables: one move for each call of the network.

    x' = keep * start + weights . answers + weights . noises

An answer is what the sampler remembers of a call (`Frame.answers`): the picture or the noise that
the network had in mind. Samplers differ in the weights, in the start (x, or a point that the step
before has led from), and in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sfumato.diffusion.frame import Frame
from sfumato.diffusion.plan import BASE, NOISE, Column, Plan, X
from sfumato.diffusion.schedule import Array


class Move(NamedTuple):
    """Weights of one move.

    Attributes:
        keep: of the point where it starts.
        answers: of the answers, newest first.
        noises: of the noises that calls drew, newest first.
    """

    keep: float
    answers: Sequence[float]
    noises: Sequence[float] = ()

    @property
    def reach(self) -> int:
        """Age of the oldest call that it looks back at."""
        return max(len(self.answers), len(self.noises), 1) - 1


#: Start where the step of the call before started.
BACK = Move(1.0, ())


def blank(rows: int, depth: int = 0, columns: int = len(Column)) -> tuple[Array, Array]:
    """``base`` (each row starting from x) and ``update`` (all zero), to be filled in."""
    base = np.zeros((rows, depth + 1, columns))
    base[:, 0, X] = 1
    return base, np.zeros_like(base)


def moving(
    frame: Frame,
    memory: Array,
    moves: Sequence[Move],
    starts: Sequence[Move | None] | None = None,
    **more: Any,
) -> Plan:
    """The table of a sampler with a memory.

    Args:
        frame: of the run.
        memory: ``(n, 5)``, from `Frame.answers`.
        moves: one for each call.
        starts: for each call how to get from the start of the step before to the start of this
            one; None to start from x.
        more: fields of `Plan`.
    """
    starts = [None] * len(frame) if starts is None else starts
    back = [start.reach for start in starts if start is not None]
    depth = max([move.reach for move in moves] + [max(1, reach) for reach in back])
    base, update = blank(len(frame), depth)
    for row, (start, move) in enumerate(zip(starts, moves, strict=True)):
        if start is not None:
            base[row, 0, X] = 0
            _add(base, row, start, memory, age=1)
        _add(update, row, move, memory, age=0)
        if start is None:  # then x and the base are the same, and large weights may cancel
            update[row, 0, BASE] += update[row, 0, X]
            update[row, 0, X] = 0
    return frame.plan(base, update, **more)


def _add(table: Array, row: int, move: Move, memory: Array, *, age: int) -> None:
    table[row, age, BASE] += move.keep
    for back, weight in enumerate(move.answers):
        table[row, back] += weight * memory[row - back]
    for back, weight in enumerate(move.noises):
        table[row, back, NOISE] += weight
