"""One row of a plan: from a state and the network's answer to the next state.

Only operators are used, so torch, NumPy and JAX arrays will do, and nothing is remembered here. A
state can be kept, copied or sent elsewhere, so pictures at different steps of different plans may
share one call of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sfumato.diffusion.plan import Limit, Plan, X
from sfumato.diffusion.schedule import Array


class Call(NamedTuple):
    """The tensors of one call of the network, in the order of `plan.Column`; and the picture that
    it has in mind for the negative prompt, where the plan wants that."""

    x: Any
    base: Any
    output: Any
    denoised: Any
    noise: Any
    negative: Any = None


@dataclass(frozen=True)
class State:
    """Where a picture stands between two rows.

    Attributes:
        x: the picture in progress.
        past: earlier calls that a row may still need, newest first.
    """

    x: Any
    past: tuple[Call, ...] = ()


def advance(
    plan: Plan,
    row: int,
    state: State,
    output: Any,
    noise: Any = None,
    limit: Callable[[Any, Limit], Any] | None = None,
) -> State:
    """Apply one row.

    Args:
        plan: the table.
        row: which row.
        state: before the row; ``state.x`` may have been replaced by the caller.
        output: what the network answered to ``plan.input_scale[row] * state.x``; see
            `Plan.wants_negative`.
        noise: standard normal, if ``plan.draws[row]``.
        limit: applies `plan.limit`; `run.limit_denoised` for torch.

    Returns:
        The next state; ``past[0]`` is this call, its ``denoised`` among it.
    """
    x, negative = state.x, None
    if plan.wants_negative:
        width = x.shape[1]
        output, other = output[:, :width], output[:, -width:]
        negative = weighted(plan.denoised[row], (x, other, noise), like=x)
    denoised = weighted(plan.denoised[row], (x, output, noise), like=x)
    if plan.limit is not None and limit is not None:
        denoised = limit(denoised, plan.limit)
        negative = None if negative is None else limit(negative, plan.limit)
    call = Call(x, None, output, denoised, noise, negative)
    base = x if _is_x(plan.base[row]) else _mix(plan.base[row], (call, *state.past), like=x)
    call = call._replace(base=base)
    past = (call, *state.past)
    return State(_mix(plan.update[row], past, like=x), past[: max(plan.depth, 1)])


def weighted(weights: Array | Sequence[float], tensors: Sequence[Any], *, like: Any) -> Any:
    """Sum of weight times tensor, leaving out the zeros; zeros like ``like`` if all are."""
    terms = [float(w) * t for w, t in zip(weights, tensors, strict=True) if w != 0]
    return sum(terms[1:], start=terms[0]) if terms else like * 0.0


def _mix(weights: Array, calls: Sequence[Call], *, like: Any) -> Any:
    ages = [age for age in range(len(weights)) if weights[age].any()]
    flat = [w for age in ages for w in weights[age]]
    tensors = [t for age in ages for t in calls[age][: weights.shape[1]]]
    return weighted(flat, tensors, like=like)


def _is_x(base: Array) -> bool:
    return bool(base[0, X] == 1 and np.count_nonzero(base) == 1)
