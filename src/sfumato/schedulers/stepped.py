"""Schedulers that count steps and pass through a list of sigmas, and the forms of ``step``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sfumato.diffusion.plan import Plan
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError
from sfumato.schedulers.base import C, Scheduler, SchedulerOutput
from sfumato.schedulers.tables import Table, array_of

if TYPE_CHECKING:
    import torch

    from sfumato.diffusion.noise import Generators


class SteppedScheduler(Scheduler[C]):
    """A scheduler that finds its place at the first ``step`` and counts from there.

    Attributes:
        sigmas: levels from step to step, one more than there are timesteps, on the CPU.
        step_index: number of the next step, None before the first.
        begin_index: where the first step shall be, if set by `set_begin_index`.
    """

    #: Whether a timestep may be an integer; otherwise one is taken for a counter, and refused.
    whole_timesteps: ClassVar[bool] = True
    #: Whether ``step`` without ``return_dict`` also returns the denoised picture.
    tuple_has_image: ClassVar[bool] = True

    sigmas: Table = Table()
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
            self._run, self._plans = None, {}  # also for who set `_step_index` back by hand
        return self._step_index

    def _init_step_index(self, timestep: float | torch.Tensor) -> None:
        """Begin at a timestep; the name is diffusers', whose pipelines call it."""
        self._step_index = None
        self._locate(timestep)

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
        if not self.whole_timesteps:
            refuse_integers(timestep, type(self))
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

    def _listed(self) -> np.ndarray[Any, Any]:
        """The sigmas as an array of float64."""
        return array_of(self, "sigmas").astype(np.float64)

    def _way_from(self, start: int) -> Schedule:
        self._require_timesteps()
        assert self._way is not None
        return self._way[start:]

    def _result(
        self, tensors: tuple[torch.Tensor, torch.Tensor], return_dict: bool
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        if return_dict:
            return SchedulerOutput(*tensors)
        return tensors if self.tuple_has_image else tensors[:1]

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


def plain_step(
    self: SteppedScheduler[Any],
    model_output: torch.Tensor,
    timestep: float | torch.Tensor,
    sample: torch.Tensor,
    return_dict: bool = True,
) -> SchedulerOutput | tuple[torch.Tensor, ...]:
    """The next step, of a scheduler that adds no noise.

    Args:
        model_output: the network's answer.
        timestep: at which it was asked; the first one says where the run begins.
        sample: what it was asked about, before `scale_model_input`.
        return_dict: return an output object rather than a tuple.

    Raises:
        InputError: before ``set_timesteps``, or after the last step.
    """
    return self._result(self._advance(sample, model_output, timestep), return_dict)


def noisy_step(
    self: SteppedScheduler[Any],
    model_output: torch.Tensor,
    timestep: float | torch.Tensor,
    sample: torch.Tensor,
    generator: Generators = None,
    return_dict: bool = True,
) -> SchedulerOutput | tuple[torch.Tensor, ...]:
    """The next step, of a scheduler that adds noise.

    Args:
        model_output: the network's answer.
        timestep: at which it was asked; the first one says where the run begins.
        sample: what it was asked about, before `scale_model_input`.
        generator: where the noise comes from.
        return_dict: return an output object rather than a tuple.

    Raises:
        InputError: before ``set_timesteps``, or after the last step.
    """
    return self._result(self._advance(sample, model_output, timestep, generator), return_dict)


def given_noise_step(
    self: SteppedScheduler[Any],
    model_output: torch.Tensor,
    timestep: float | torch.Tensor,
    sample: torch.Tensor,
    generator: Generators = None,
    variance_noise: torch.Tensor | None = None,
    return_dict: bool = True,
) -> SchedulerOutput | tuple[torch.Tensor, ...]:
    """The next step; arguments as of `noisy_step`, and ``variance_noise``, the noise itself."""
    result = self._advance(sample, model_output, timestep, generator, variance_noise)
    return self._result(result, return_dict)


def refuse_integers(timestep: Any, cls: type) -> None:
    """Raise `InputError` for a counter in place of a timestep, a common mistake."""
    is_floating = getattr(timestep, "is_floating_point", None)  # of a tensor
    if isinstance(timestep, int) or (is_floating is not None and not is_floating()):
        raise InputError(
            "Passing integer indices (e.g. from `enumerate(timesteps)`) as timesteps to"
            f" `{cls.__name__}.step()` is not supported. Make sure to pass one of the"
            " `scheduler.timesteps` as a timestep."
        )


def _number(timestep: float | torch.Tensor) -> float:
    return timestep if isinstance(timestep, int | float) else timestep.item()
