"""Linear multistep method (Adams-Bashforth with uneven steps) over sigma."""

from __future__ import annotations

import numpy as np

from sfumato.diffusion.frame import Frame
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.exponential import polynomial
from sfumato.diffusion.samplers.moves import Move, moving
from sfumato.diffusion.schedule import Array


def lms(frame: Frame, *, order: int = 4, earlier: Array | None = None) -> Plan:
    """Integrate the polynomial through the last slopes ``dx / dsigma``, which are the noises.

    Args:
        frame: of the run, over sigma.
        order: how many slopes at most.
        earlier: sigmas before the first one, if ``frame`` is the end of a longer way. They
            shape the polynomials as if their slopes were known, as in diffusers.
    """
    before = np.zeros(0) if earlier is None else earlier
    sigmas = np.concatenate([before, frame.now.sigma])
    moves = []
    for row in range(len(frame)):
        place = len(before) + row
        nodes = sigmas[max(place + 1 - order, 0) : place + 1][::-1]
        length = frame.next.sigma[row] - nodes[0]
        moments = length / np.arange(1, len(nodes) + 1)
        answers = polynomial(moments, (nodes - nodes[0]) / length)
        moves.append(Move(1.0, answers[: row + 1]))
    return moving(frame, frame.answers(image=False), moves)
