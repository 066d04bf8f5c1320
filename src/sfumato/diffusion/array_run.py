"""A plan on its way, on NumPy arrays: the counterpart of `sfumato.diffusion.run.PlanRun`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sfumato.diffusion.advance import Call, State, advance
from sfumato.diffusion.plan import Limit, Plan
from sfumato.errors import InputError

Array = np.ndarray[Any, Any]


def limit_denoised(denoised: Array, limit: Limit) -> Array:
    """Clip or threshold a batch ``(n, ...)`` of denoised pictures, each by itself."""
    if limit.quantile is None:
        return denoised if limit.clip is None else denoised.clip(-limit.clip, limit.clip)
    flat = denoised.reshape(len(denoised), -1)
    edge = np.quantile(np.abs(flat), limit.quantile, axis=1, keepdims=True)
    edge = edge.clip(1, limit.maximum).astype(denoised.dtype)
    return (flat.clip(-edge, edge) / edge).reshape(denoised.shape)


class ArrayRun:
    """A plan on its way: the plan, and the state that `advance` hands on.

    It is a `sfumato.diffusion.run.Solver` over float32 arrays.

    Raises:
        InputError: the network is to predict its own variance, which torch alone does here.
    """

    def __init__(self, plan: Plan) -> None:
        if plan.log_variance is not None:
            raise InputError("Networks that predict their own variance run on torch alone.")
        self.plan = plan
        self.timesteps: Any = plan.timesteps
        self.past: tuple[Call, ...] = ()

    def __len__(self) -> int:
        return len(self.plan)

    def network_input(self, row: int, x: Any) -> Any:
        """What the network sees for ``x``."""
        scale = float(self.plan.input_scale[row])
        return x if scale == 1 else x * scale

    def step(self, row: int, x: Any, output: Any, draw: Callable[[Any], Any]) -> tuple[Any, Any]:
        """The next ``x``, and the denoised picture."""
        noise = draw(np.float32) if self.plan.draws[row] else None
        if not self.plan.wants_negative:
            output = output[:, : x.shape[1]]
        state = advance(self.plan, row, State(x, self.past), output, noise, limit_denoised)
        self.past = state.past
        return state.x, state.past[0].denoised
