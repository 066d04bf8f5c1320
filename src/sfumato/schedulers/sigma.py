"""Schedulers that count steps and pass through a list of sigmas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.diffusion.noise import Generators
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.schedule import Array, Schedule, spaced_timesteps
from sfumato.errors import InputError
from sfumato.schedulers.base import C, Scheduler
from sfumato.schedulers.config import SchedulerConfig, checked_steps


class SteppedScheduler(Scheduler[C]):
    """A scheduler that finds its place at the first ``step`` and counts from there.

    Attributes:
        sigmas: levels from step to step, one more than there are timesteps, on the CPU.
        step_index: number of the next step, None before the first.
        begin_index: where the first step shall be, if set by `set_begin_index`.
    """

    sigmas: torch.Tensor
    _way: Schedule | None = None

    def _prepare(self) -> None:
        super()._prepare()
        self._forget()

    def _forget(self) -> None:
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._start = 0
        self._run = None
        self._plans: dict[Any, Plan] = {}

    @property
    def step_index(self) -> int | None:
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this step rather than at the one with the first ``timestep`` given."""
        self._begin_index = begin_index

    def index_for_timestep(
        self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None
    ) -> int:
        """Position of a timestep.

        Raises:
            InputError: when it is not there.
        """
        listed = self.timesteps if schedule_timesteps is None else schedule_timesteps
        return self._index(_number(timestep), listed.tolist())

    def _locate(self, timestep: float | torch.Tensor) -> int:
        """The number of this step; at the first call, where to begin."""
        if self._step_index is None:
            begin = self._begin_index
            self._start = self.index_for_timestep(timestep) if begin is None else begin
            self._step_index = self._start
        return self._step_index

    def _advance(
        self,
        sample: torch.Tensor,
        output: torch.Tensor,
        timestep: float | torch.Tensor,
        generator: Generators = None,
        noise: torch.Tensor | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next row, of the plan with these options; returns next and denoised sample."""
        self._require_timesteps()
        index = self._locate(timestep)
        options = options or {}
        key = tuple(sorted(options.items()))
        if key not in self._plans:
            self._plans = {key: self.plan(self._start, **options)}
        plan, row = self._plans[key], index - self._start
        if row >= len(plan):
            raise InputError("All steps are taken.", hint="Call `set_timesteps` to begin again.")
        result = self._apply(plan, row, sample, output, generator, noise)
        self._step_index = index + 1
        return result

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Noise pictures to the level of a step.

        Before a run with `set_begin_index`, that is the first step; during one, the step that is
        next; otherwise the step of each picture's own timestep.

        Args:
            original_samples: ``(n, ...)``.
            noise: standard normal, same shape.
            timesteps: ``(n,)``, out of ``timesteps``.
        """
        if self._begin_index is None:
            rows = [self.index_for_timestep(t) for t in timesteps]
        else:
            next_step = self._begin_index if self._step_index is None else self._step_index
            rows = [next_step] * len(timesteps)
        shape = (-1, *[1] * (original_samples.ndim - 1))
        alpha, sigma = (level[rows].view(shape).to(original_samples) for level in self._levels())
        return alpha * original_samples + sigma * noise

    def _levels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and sigma of ``x = alpha * image + sigma * noise`` for each of ``sigmas``."""
        alpha = 1 / (self.sigmas.double() ** 2 + 1) ** 0.5
        return alpha, self.sigmas * alpha


@dataclass(frozen=True, kw_only=True)
class SigmaSpaceConfig(SchedulerConfig):
    """Settings of the samplers in sigma space.

    Attributes:
        use_karras_sigmas: spread sigmas as Karras et al. do.
        use_exponential_sigmas: spread them evenly in their logarithm.
        use_beta_sigmas: spread them by a beta distribution.
        timestep_spacing: see `schedule.spaced_timesteps`.
        steps_offset: added to ``leading`` timesteps.
    """

    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    timestep_spacing: str = "linspace"
    steps_offset: int = 0


class SigmaSpaceScheduler(SteppedScheduler[C]):
    """A scheduler on ``x = image + sigma * noise``: the Euler family."""

    def _spaced(self, steps: Any) -> NDArray[np.float32]:
        """Timesteps by number, checked."""
        config: Any = self.config
        n = checked_steps(steps, len(self))
        values = spaced_timesteps(config.timestep_spacing, n, len(self), offset=config.steps_offset)
        return values.astype(np.float32)

    def _follow(
        self,
        timesteps: NDArray[Any],
        sigmas: Array,
        device: str | torch.device | None,
        *,
        steps: int | None = None,
    ) -> None:
        """Take these as the way of the coming run; ``steps`` if not as many as timesteps."""
        n = len(timesteps)
        self._forget()
        self.num_inference_steps = n if steps is None else steps
        self.sigmas = torch.from_numpy(sigmas).float()
        self._way = Schedule.from_sigmas(
            timesteps.astype(np.float32), self.sigmas[: n + 1].double().numpy()
        )
        self.timesteps = torch.from_numpy(self._way.timesteps).to(device)

    def _way_from(self, start: int) -> Schedule:
        self._require_timesteps()
        assert self._way is not None
        return self._way[start:]

    def _levels(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones_like(self.sigmas), self.sigmas

    @property
    def init_noise_sigma(self) -> torch.Tensor:
        """The largest sigma; with ``leading`` timesteps, that of picture and noise together."""
        largest = self.sigmas.max()
        spacing = self.config.get("timestep_spacing")
        return largest if spacing in ("linspace", "trailing") else (largest**2 + 1) ** 0.5

    def scale_model_input(
        self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """``sample`` scaled to a variance of one, as the network was trained."""
        index = self._locate(self.timesteps[0] if timestep is None else timestep)
        self._require_timesteps()
        assert self._way is not None
        return sample * float(self._way.now.alpha[index])


def refuse_integers(timestep: Any, cls: type) -> None:
    """Raise `InputError` for a counter in place of a timestep, a common mistake."""
    if isinstance(timestep, int) or (
        isinstance(timestep, torch.Tensor) and timestep.dtype in (torch.int32, torch.int64)
    ):
        raise InputError(
            "Passing integer indices (e.g. from `enumerate(timesteps)`) as timesteps to"
            f" `{cls.__name__}.step()` is not supported. Make sure to pass one of the"
            " `scheduler.timesteps` as a timestep."
        )


def _number(timestep: float | torch.Tensor) -> float:
    return timestep.item() if isinstance(timestep, torch.Tensor) else timestep
