"""What the DPM-Solver, UniPC and DEIS schedulers share: whole timesteps and their sigmas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from sfumato.diffusion.frame import Frame, as_trained
from sfumato.diffusion.plan import Limit
from sfumato.diffusion.schedule import Array, Schedule
from sfumato.diffusion.ways import (
    Ramp,
    final_sigma,
    flow_schedule,
    flow_sigmas,
    solver_sigmas,
    solver_timesteps,
)
from sfumato.errors import ConfigError, InputError
from sfumato.schedulers.config import (
    SchedulerConfig,
    TrainedConfig,
    checked_steps,
    checked_timesteps,
    dynamic_limit,
    no_custom_timesteps,
    ramp_of,
)
from sfumato.schedulers.stepped import SteppedScheduler
from sfumato.schedulers.tables import placed

if TYPE_CHECKING:
    import torch

MAX_SOLVER_ORDER = 10


@dataclass(frozen=True, kw_only=True)
class WaySolverConfig(TrainedConfig):
    """Settings of how all solvers go.

    Attributes:
        thresholding: dynamic thresholding of the denoised picture, by the quantile
            ``dynamic_thresholding_ratio``, up to ``sample_max_value``. Not for latents.
        lower_order_final: end with lower orders, which is steadier with few steps.
        use_karras_sigmas: spread sigmas as Karras et al. do.
        use_exponential_sigmas: spread them evenly in their logarithm.
        use_beta_sigmas: spread them by a beta distribution.
        use_flow_sigmas: spread them as flow matching does, shifted by ``flow_shift``.
    """

    pin_last: ClassVar[bool] = True
    predictions: ClassVar[tuple[str, ...]] = (
        "epsilon",
        "sample",
        "v_prediction",
        "flow_prediction",
    )

    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    lower_order_final: bool = True
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0

    def validate(self) -> None:
        super().validate()
        if self.flow_shift <= 0:
            raise ConfigError(f"`flow_shift` has to be positive but is {self.flow_shift}.")

    @property
    def limit(self) -> Limit | None:
        """Dynamic thresholding, if it is on."""
        return dynamic_limit(self)


@dataclass(frozen=True, kw_only=True)
class SolverConfig(WaySolverConfig):
    """Settings that most solvers share.

    Attributes:
        solver_order: how many answers of the network a step uses.
        use_dynamic_shifting: allow ``mu`` in ``set_timesteps``.
        time_shift_type: how ``mu`` becomes ``flow_shift``; only ``exponential``.
    """

    solver_order: int = 2
    use_dynamic_shifting: bool = False
    time_shift_type: str = "exponential"

    def validate(self) -> None:
        super().validate()
        check_order(self, "solver_order", MAX_SOLVER_ORDER)


@dataclass(frozen=True, kw_only=True)
class SpacedSolverConfig(SolverConfig):
    """Settings of solvers with a choice of timesteps.

    Attributes:
        timestep_spacing: see `schedule.spaced_timesteps`.
        steps_offset: added to ``leading`` timesteps.
    """

    timestep_spacing: str = "linspace"
    steps_offset: int = 0


def check_order(config: SchedulerConfig, field: str, most: int) -> None:
    """Raise `ConfigError` for an order out of range."""
    if not 1 <= config[field] <= most:
        raise ConfigError(f"`{field}` has to be from 1 to {most} but is {config[field]}.")


S = TypeVar("S", bound=WaySolverConfig)


class SolverScheduler(SteppedScheduler[S]):
    """A scheduler on ``x = alpha * image + sigma * noise`` that passes through sigmas."""

    tuple_has_image: ClassVar[bool] = False

    def _prepare(self) -> None:
        super()._prepare()
        self.timesteps = np.arange(len(self) - 1, -1, -1, dtype=np.float32)
        self.sigmas = self._sigma_table.astype(np.float32)

    @property
    def alpha_t(self) -> torch.Tensor:
        """Share of the picture at each timestep of training."""
        return self.alphas_cumprod.sqrt()

    @property
    def sigma_t(self) -> torch.Tensor:
        """Share of the noise at each timestep of training."""
        return (1 - self.alphas_cumprod).sqrt()

    @property
    def lambda_t(self) -> torch.Tensor:
        """Logarithm of their ratio."""
        return self.alpha_t.log() - self.sigma_t.log()

    def index_for_timestep(
        self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None
    ) -> int:
        """Position of a timestep; the last one for a timestep that is not there."""
        listed = self.timesteps if schedule_timesteps is None else schedule_timesteps
        if not bool((listed == timestep).any()):
            return len(listed) - 1
        return super().index_for_timestep(timestep, schedule_timesteps)

    def _levels(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._settings.use_flow_sigmas:
            return 1 - self.sigmas, self.sigmas
        return super()._levels()

    def _choose(
        self,
        steps: int | None,
        device: str | torch.device | None,
        timesteps: Sequence[int] | None = None,
        *,
        mu: float | None = None,
        ramp: Ramp | None = None,
        rounded: bool = True,
        end_of_ramp: bool = False,
        final: str = "zero",
        lambda_min: float = -math.inf,
    ) -> None:
        """Choose the way of the coming run.

        Args:
            steps: how many, unless ``timesteps`` are given.
            device: where ``timesteps`` shall be.
            timesteps: the user's own.
            mu: logarithm of ``flow_shift``.
            ramp: in place of the configuration's.
            rounded: see `ways.solver_sigmas`.
            end_of_ramp: with ``sigma_min``, end at the ramp's last sigma rather than the table's.
            final: ``zero`` or ``sigma_min``.
            lambda_min: see `ways.solver_timesteps`.
        """
        if mu is not None:
            self._shift(mu)
        config: Any = self.config
        ramp = ramp_of(config) if ramp is None else ramp
        if timesteps is not None:
            no_custom_timesteps(config, *_RAMP_SWITCHES)
            points = np.array(checked_timesteps(timesteps, len(self)), dtype=np.int64)
        else:
            n = checked_steps(steps, len(self))
            points = solver_timesteps(
                self._settings.get("timestep_spacing", "linspace"),
                n,
                self._acp,
                offset=self._settings.get("steps_offset", 0),
                lambda_min=lambda_min,
            )
        flow = bool(config.use_flow_sigmas) and ramp.kind is None
        if flow:
            points, sigmas = flow_sigmas(len(points), len(self), self._settings.flow_shift)
        else:
            points, sigmas = solver_sigmas(points, self._sigma_table, ramp=ramp, rounded=rounded)
        smallest = float(self._sigma_table[0])
        if end_of_ramp and (flow or ramp.kind is not None):
            smallest = float(sigmas[-1])
        end = final_sigma(final, smallest)
        self._follow(points, np.append(sigmas, end), device)

    def _shift(self, mu: float) -> None:
        config = self._settings
        allowed = config.get("use_dynamic_shifting")
        if not allowed or config.get("time_shift_type") != "exponential":
            raise InputError(
                "`mu` needs `use_dynamic_shifting = True` and `time_shift_type = 'exponential'`."
            )
        self._settings = replace(config, flow_shift=math.exp(mu))

    def _follow(
        self, timesteps: np.ndarray, sigmas: Array, device: str | torch.device | None
    ) -> None:
        self._forget()
        self.num_inference_steps = n = len(timesteps)
        make = flow_schedule if self._settings.use_flow_sigmas else Schedule.from_sigmas
        self.sigmas = sigmas.astype(np.float32)
        self._way = make(timesteps, self._listed()[: n + 1])
        self.timesteps = placed(timesteps, device)

    def _frame(self, start: int) -> Frame:
        """The calls of ``timesteps[start:]``."""
        config = self._settings
        frame = as_trained(self._way_from(start), config.prediction_type, limit=config.limit)
        if config.prediction_type == "flow_prediction" and not config.use_flow_sigmas:
            # What the prediction is multiplied with is the listed sigma, a ratio on such a way.
            ratio = frame.now.ratio
            frame = replace(frame, denoised=np.stack([np.ones_like(ratio), -ratio], axis=1))
        return frame


_RAMP_SWITCHES = (
    "use_karras_sigmas",
    "use_lu_lambdas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)
