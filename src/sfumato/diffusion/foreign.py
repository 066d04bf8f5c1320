"""Scheduler objects that are not ours, made to run through the same loop.

Anything with diffusers' scheduler methods will do: ``timesteps``, ``scale_model_input``, ``step``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from sfumato.diffusion.run import Draw


def accepted_options(method: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options that a method has parameters for.

    Schedulers differ in the arguments of ``step``: some take ``eta``, some ``generator``.
    """
    parameters = inspect.signature(method).parameters
    return {name: value for name, value in options.items() if name in parameters}


class SchedulerRun:
    """A scheduler with its own memory, as a `run.Solver`.

    Args:
        scheduler: after its ``set_timesteps``.
        timesteps: those to run, if not all of ``scheduler.timesteps``.
        options: for ``scheduler.step``, such as ``generator`` and ``eta``; those that it has no
            parameter for are left out. The scheduler draws its own noise.
    """

    def __init__(
        self, scheduler: Any, timesteps: torch.Tensor | None = None, **options: Any
    ) -> None:
        self.scheduler = scheduler
        self.timesteps: torch.Tensor = scheduler.timesteps if timesteps is None else timesteps
        self.options = accepted_options(scheduler.step, options)

    def __len__(self) -> int:
        return len(self.timesteps)

    def network_input(self, row: int, x: torch.Tensor) -> torch.Tensor:
        return self.scheduler.scale_model_input(x, self.timesteps[row])

    def step(
        self, row: int, x: torch.Tensor, output: torch.Tensor, draw: Draw
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        result = self.scheduler.step(
            output, self.timesteps[row], x, **self.options, return_dict=False
        )
        return result[0], result[1] if len(result) > 1 else None
