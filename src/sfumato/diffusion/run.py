"""A plan on its way, in torch: what the loop asks of it row by row.

`PlanRun` holds the state that `advance` hands on. `Solver` is what `denoise` needs of it, or of a
foreign scheduler in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch

from sfumato.diffusion.advance import Call, State, advance
from sfumato.diffusion.plan import Limit, Plan

Draw = Callable[[torch.dtype], torch.Tensor]


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
    """What the loop needs: plans and foreign schedulers both run through this.

    A solver that chooses its steps as it goes grows: its length is how many calls are certain.
    """

    timesteps: Any

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
        elif not self.plan.wants_negative:
            output = output[:, : x.shape[1]]
        state = State(x.to(wide), self.past)
        state = advance(self.plan, row, state, output, noise, limit_denoised)
        self.past = state.past
        return state.x.to(dtype), state.past[0].denoised.to(dtype)

    def _spread(self, row: int, mixture: torch.Tensor) -> torch.Tensor:
        """Standard deviation that the network itself predicts, mostly between two bounds."""
        assert self.plan.log_variance is not None
        low, *rest = (float(v) for v in self.plan.log_variance[row])
        if not rest:
            return mixture.clamp(min=0) ** 0.5 * math.exp(0.5 * low)
        high = rest[0]
        share = (mixture + 1) / 2
        return torch.exp(0.5 * (share * high + (1 - share) * low))
