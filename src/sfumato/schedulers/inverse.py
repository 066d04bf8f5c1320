"""DDIM and DPM-Solver backwards, from a picture to its noise, under their diffusers names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sfumato.diffusion import samplers
from sfumato.diffusion.frame import as_trained
from sfumato.diffusion.plan import Limit, Plan
from sfumato.diffusion.samplers.dpm import ALGORITHMS
from sfumato.diffusion.schedule import Schedule, spaced_timesteps
from sfumato.diffusion.ways import (
    flow_sigmas,
    levels_above,
    levels_at,
    rising_timesteps,
    solver_sigmas,
)
from sfumato.errors import ConfigError
from sfumato.schedulers.base import Scheduler, SchedulerOutput
from sfumato.schedulers.config import SchedulerConfig, TrainedConfig, checked_steps, ramp_of
from sfumato.schedulers.dpmsolver_multistep import SOLVER_TRANSLATIONS, multistep_options
from sfumato.schedulers.solver import SolverScheduler, WaySolverConfig, check_order
from sfumato.schedulers.stepped import given_noise_step
from sfumato.schedulers.tables import Table, placed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class DDIMInverseConfig(TrainedConfig):
    """Settings of DDIM inversion; see `DDIMConfig`.

    Attributes:
        set_alpha_to_one: begin at no noise; else at training timestep 0.
        timestep_spacing: ``leading`` or ``trailing``.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"timestep_spacing": ("leading", "trailing")}

    clip_sample: bool = True
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    clip_sample_range: float = 1.0
    timestep_spacing: str = "leading"
    rescale_betas_zero_snr: bool = False

    @property
    def limit(self) -> Limit | None:
        """Clipping, if it is on."""
        return Limit(clip=self.clip_sample_range) if self.clip_sample else None


class DDIMInverseScheduler(Scheduler[DDIMInverseConfig]):
    """DDIM from the picture to the noise that it would come from.

    The network is asked at the timestep where a step ends: what it says there stands for where
    the step starts.
    """

    config_class: ClassVar[type[SchedulerConfig]] = DDIMInverseConfig
    swappable: ClassVar[bool] = False
    initial_alpha_cumprod: Table = Table()

    def _prepare(self) -> None:
        super()._prepare()
        self._initial = 1.0 if self._settings.set_alpha_to_one else float(self._acp[0])
        self.initial_alpha_cumprod = np.float32(self._initial)
        self.timesteps = np.arange(len(self))

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Choose the timesteps.

        Args:
            num_inference_steps: how many.
            device: where ``timesteps`` shall be.

        Raises:
            InputError: for a number out of range.
        """
        config = self._settings
        n = checked_steps(num_inference_steps, len(self))
        values = spaced_timesteps(config.timestep_spacing, n, len(self), offset=config.steps_offset)
        self.num_inference_steps = n
        self.timesteps = placed(values[::-1].round().astype(np.int64), device)

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        self._require_timesteps()
        return self._table(self._told()[start:])

    def _table(self, timesteps: Any) -> Plan:
        assert self.num_inference_steps is not None
        before = np.minimum(timesteps - len(self) // self.num_inference_steps, len(self) - 1)
        now = levels_at(before, self._acp, self._initial)
        way = Schedule(timesteps, now, levels_at(timesteps, self._acp))
        config = self._settings
        return samplers.ddim(as_trained(way, config.prediction_type, limit=config.limit))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """One step that ends at ``timestep``, which need not be one of ``timesteps``.

        Args:
            model_output: the network's answer.
            timestep: at which it was asked.
            sample: what it was asked about.
            return_dict: return an output object rather than a tuple.

        Raises:
            InputError: before ``set_timesteps``.
        """
        self._require_timesteps()
        plan = self._table(np.array([int(timestep)]))
        result = self._apply(plan, 0, sample, model_output)
        return SchedulerOutput(*result) if return_dict else result


@dataclass(frozen=True, kw_only=True)
class DPMSolverMultistepInverseConfig(WaySolverConfig):
    """Settings of DPM-Solver inversion; see `DPMSolverMultistepConfig`."""

    pin_last: ClassVar[bool] = False
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "algorithm_type": ALGORITHMS,
        "solver_type": ("midpoint", "heun"),
    }
    translations: ClassVar[Mapping[str, Mapping[str, str]]] = SOLVER_TRANSLATIONS

    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    euler_at_final: bool = False
    lambda_min_clipped: float = -math.inf
    variance_type: str | None = None
    timestep_spacing: str = "linspace"
    steps_offset: int = 0

    def validate(self) -> None:
        super().validate()
        check_order(self, "solver_order", 3)
        if self.algorithm_type.startswith("sde"):
            raise ConfigError(
                f"`algorithm_type` {self.algorithm_type} adds noise, which cannot be inverted.",
                hint="Take `dpmsolver++`.",
            )


class DPMSolverMultistepInverseScheduler(SolverScheduler[DPMSolverMultistepInverseConfig]):
    """DPM-Solver from the picture to its noise."""

    config_class: ClassVar[type[SchedulerConfig]] = DPMSolverMultistepInverseConfig

    def _prepare(self) -> None:
        super()._prepare()
        self.timesteps = np.arange(len(self), dtype=np.float32)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Choose the timesteps.

        Args:
            num_inference_steps: how many. With a spread of sigmas, those that would be asked at
                the same timestep are one.
            device: where ``timesteps`` shall be.

        Raises:
            InputError: for a number out of range.
        """
        config, ramp = self._settings, ramp_of(self._settings)
        n, table = checked_steps(num_inference_steps, len(self)), self._sigma_table
        points = rising_timesteps(
            config.timestep_spacing,
            n,
            self._acp,
            offset=config.steps_offset,
            lambda_min=config.lambda_min_clipped,
        )
        flow = bool(config.use_flow_sigmas) and ramp.kind is None
        if flow:
            points, sigmas = flow_sigmas(n, len(self), config.flow_shift)
        else:
            nearest = bool(config.use_karras_sigmas)
            points, sigmas = solver_sigmas(points, table, ramp=ramp, rounded=nearest, rising=True)
        end = table[levels_above(config.lambda_min_clipped, self._acp) - 1]
        if flow or ramp.kind is not None:
            end = sigmas[-1]
        if config.use_karras_sigmas or (ramp.kind is None and not flow):
            points = np.unique(points)
        self._follow(points, np.append(sigmas, end), device)

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        return samplers.dpm_multistep(
            self._frame(start),
            **multistep_options(self._settings),
            steps=self.num_inference_steps,
        )

    step = given_noise_step
