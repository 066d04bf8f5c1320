"""PNDM and PLMS under their diffusers name; the first default of Stable Diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sfumato.diffusion import samplers
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.schedule import spaced_timesteps
from sfumato.errors import InputError
from sfumato.schedulers.base import Scheduler, SchedulerOutput
from sfumato.schedulers.config import SchedulerConfig, TrainedConfig, checked_steps
from sfumato.schedulers.tables import Table, placed

if TYPE_CHECKING:
    import torch

#: Steps that a Runge-Kutta start replaces.
RUNGE_KUTTA_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class PNDMConfig(TrainedConfig):
    """Settings of PNDM.

    Attributes:
        skip_prk_steps: PLMS: no Runge-Kutta steps at the start.
        set_alpha_to_one: end the last step at no noise; else at training timestep 0.
        timestep_spacing: see `schedule.spaced_timesteps`.
        steps_offset: added to ``leading`` timesteps.
    """

    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False
    timestep_spacing: str = "leading"
    steps_offset: int = 0


class PNDMScheduler(Scheduler[PNDMConfig]):
    """Pseudo numerical methods (arXiv:2202.09778).

    There are more calls of the network than steps: one more with ``skip_prk_steps``, nine more
    without. Calls count from ``set_timesteps``, and must follow ``timesteps`` in order.
    """

    config_class: ClassVar[type[SchedulerConfig]] = PNDMConfig
    final_alpha_cumprod: Table = Table()

    def _prepare(self) -> None:
        super()._prepare()
        self._final = 1.0 if self._settings.set_alpha_to_one else float(self._acp[0])
        self.final_alpha_cumprod = np.float32(self._final)
        self.timesteps = np.arange(len(self) - 1, -1, -1)
        self._forget()

    def _forget(self) -> None:
        self.counter = 0
        self._run = None
        self._plan: Plan | None = None

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Choose the timesteps.

        Args:
            num_inference_steps: how many steps; without ``skip_prk_steps`` at least 4.
            device: where ``timesteps`` shall be.

        Raises:
            InputError: for a number out of range.
        """
        config = self._settings
        n = checked_steps(num_inference_steps, len(self))
        spaced = spaced_timesteps(config.timestep_spacing, n, len(self), offset=config.steps_offset)
        values = spaced.round().astype(np.int64)
        if config.skip_prk_steps:
            self.prk_timesteps = np.zeros(0, dtype=np.int64)
            self.plms_timesteps = np.concatenate([values[:2], values[1:2], values[2:]])
        else:
            if n < RUNGE_KUTTA_STEPS:
                raise InputError(
                    f"PNDM needs at least {RUNGE_KUTTA_STEPS} steps but has {n}.",
                    hint="Take more steps, or skip_prk_steps=True.",
                )
            self.prk_timesteps = self._runge_kutta(values[:RUNGE_KUTTA_STEPS], n)
            self.plms_timesteps = values[RUNGE_KUTTA_STEPS - 1 :]
        self.num_inference_steps = n
        calls = np.concatenate([self.prk_timesteps, self.plms_timesteps])
        self.timesteps = placed(calls, device)
        self._forget()

    def _runge_kutta(self, ends: np.ndarray, n: int) -> np.ndarray:
        """From each end to the next: the start, twice the middle, the end."""
        half = len(self) // n // 2
        calls = [(a, b + half, b + half, b) for a, b in pairwise(ends)]
        return np.array(calls, dtype=np.int64).flatten()

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        self._require_timesteps()
        assert self.num_inference_steps is not None
        return samplers.pndm(
            self._told()[start:],
            self._acp,
            len(self) // self.num_inference_steps,
            final_alpha_cumprod=self._final,
            prediction=self._settings.prediction_type,
            runge_kutta=None if self._settings.skip_prk_steps else self.prk_timesteps,
        )

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """The next call's row; the first call may begin anywhere in ``timesteps``.

        Args:
            model_output: the network's answer.
            timestep: at which it was asked.
            sample: what it was asked about.
            return_dict: return an output object rather than a tuple.

        Raises:
            InputError: before ``set_timesteps``, or after the last call.
        """
        self._require_timesteps()
        if self._plan is None:
            self._start = self._index(int(timestep), self.timesteps.tolist())
            self._plan = self.plan(self._start)
        elif self.counter == 1 and int(timestep) == self._plan.timesteps[0]:
            # The run began at the first of two timesteps alike, which only the second call tells.
            self._start -= 1
            self._plan = self.plan(self._start)
        if self.counter >= len(self._plan):
            raise InputError("All steps are taken.", hint="Call `set_timesteps` to begin again.")
        previous, denoised = self._apply(self._plan, self.counter, sample, model_output)
        self.counter += 1
        return SchedulerOutput(previous, denoised) if return_dict else (previous,)
