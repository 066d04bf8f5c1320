"""One row of a plan after the other.

`advance` is the arithmetic: a pure function from a state, a row and the network's output to the
next state, for torch, NumPy and JAX arrays alike. A state can be kept, copied or sent elsewhere,
so pictures at different steps of different plans may share one call of the network. `PlanRun`
holds the state for a plain loop, and `Solver` is what `denoise` needs from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from sfumato.diffusion.plan import Limit, Plan, X
from sfumato.diffusion.schedule import Array

Draw = Callable[[torch.dtype], torch.Tensor]


class Call(NamedTuple):
    """The tensors of one call of the network, in the order of `plan.Column`."""

    x: Any
    base: Any
    output: Any
    denoised: Any
    noise: Any


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
        output: what the network answered to ``plan.input_scale[row] * state.x``.
        noise: standard normal, if ``plan.draws[row]``.
        limit: applies `plan.limit`; `limit_denoised` for torch.

    Returns:
        The next state; ``past[0]`` is this call, its ``denoised`` among it.
    """
    x = state.x
    now = (x, output, noise)
    denoised = weighted(plan.denoised[row], now, like=x)
    if plan.limit is not None and limit is not None:
        denoised = limit(denoised, plan.limit)
    call = Call(x, None, output, denoised, noise)
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
    tensors = [t for age in ages for t in calls[age]]
    return weighted(flat, tensors, like=like)


def _is_x(base: Array) -> bool:
    return bool(base[0, X] == 1 and np.count_nonzero(base) == 1)


def limit_denoised(denoised: torch.Tensor, limit: Limit) -> torch.Tensor:
    """Clip or threshold a batch ``(n, ...)`` of denoised pictures, each by itself."""
    if limit.quantile is None:
        return denoised if limit.clip is None else denoised.clamp(-limit.clip, limit.clip)
    wide = denoised if denoised.dtype == torch.float64 else denoised.float()
    flat = wide.flatten(1)
    edge = torch.quantile(flat.abs(), limit.quantile, dim=1, keepdim=True)
    edge = edge.clamp(min=1, max=limit.maximum)
    return (torch.clamp(flat, -edge, edge) / edge).view_as(wide).to(denoised.dtype)


class Solver(Protocol):
    """What the loop needs: plans and foreign schedulers both run through this."""

    timesteps: torch.Tensor

    def __len__(self) -> int: ...

    def network_input(self, row: int, x: torch.Tensor) -> torch.Tensor:
        """What the network sees for ``x``."""
        ...

    def step(
        self, row: int, x: torch.Tensor, output: torch.Tensor, draw: Draw
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The next ``x``, and the denoised picture if it is known."""
        ...


class PlanRun:
    """A plan on its way: the plan, and the state that `advance` hands on.

    Args:
        plan: the table.
        device: where the network wants its timesteps.
    """

    def __init__(self, plan: Plan, device: torch.device | str = "cpu") -> None:
        self.plan = plan
        self.timesteps = torch.from_numpy(plan.timesteps.copy()).to(device)
        self.past: tuple[Call, ...] = ()

    def __len__(self) -> int:
        return len(self.plan)

    def network_input(self, row: int, x: torch.Tensor) -> torch.Tensor:
        scale = float(self.plan.input_scale[row])
        return x if scale == 1 else x * scale

    def step(
        self, row: int, x: torch.Tensor, output: torch.Tensor, draw: Draw
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = torch.promote_types(x.dtype, output.dtype)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        noise = None
        if self.plan.draws[row]:
            noise = draw(torch.float32 if self.plan.noise_in_float32 else output.dtype).to(wide)
        output = output.to(wide)
        if self.plan.log_variance is not None:
            output, mixture = output.chunk(2, dim=1)
            noise = None if noise is None else noise * self._spread(row, mixture)
        elif output.shape[1] > x.shape[1]:
            output = output[:, : x.shape[1]]
        state = State(x.to(wide), self.past)
        state = advance(self.plan, row, state, output, noise, limit_denoised)
        self.past = state.past
        return state.x.to(dtype), state.past[0].denoised.to(dtype)

    def _spread(self, row: int, mixture: torch.Tensor) -> torch.Tensor:
        """Standard deviation that the network itself predicts, between two bounds."""
        assert self.plan.log_variance is not None
        low, high = (float(v) for v in self.plan.log_variance[row])
        share = (mixture + 1) / 2
        return torch.exp(0.5 * (share * high + (1 - share) * low))
