"""SA-Solver under its diffusers name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sfumato.diffusion import samplers
from sfumato.diffusion.plan import Plan
from sfumato.errors import ConfigError
from sfumato.schedulers.base import Scheduler
from sfumato.schedulers.config import SchedulerConfig
from sfumato.schedulers.solver import SolverScheduler, WaySolverConfig, check_order
from sfumato.schedulers.stepped import noisy_step

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class SASolverConfig(WaySolverConfig):
    """Settings of SA-Solver; see `WaySolverConfig` and `samplers.sa_solver`.

    Attributes:
        predictor_order: how many answers the predictor uses, 1 to 4.
        corrector_order: how many the corrector uses, 1 to 4.
        tau_func: how random a step from a timestep is, 0 or more. If not given, 1 for timesteps
            200 to 800 and 0 outside. It is not saved.
        algorithm_type: ``data_prediction`` extrapolates the picture, ``noise_prediction`` the
            noise.
        lambda_min_clipped: leave out levels below this log(alpha / sigma).
        variance_type: ``learned`` or ``learned_range`` for networks with twice the channels, of
            which the second half is not used.
        timestep_spacing: see `schedule.spaced_timesteps`.
        steps_offset: added to ``leading`` timesteps.
    """

    pin_last: ClassVar[bool] = False
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "algorithm_type": ("data_prediction", "noise_prediction")
    }
    translations: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "algorithm_type": {
            "dpmsolver++": "data_prediction",
            "sde-dpmsolver++": "data_prediction",
            "dpmsolver": "noise_prediction",
            "sde-dpmsolver": "noise_prediction",
            "deis": "noise_prediction",
        }
    }

    predictor_order: int = 2
    corrector_order: int = 2
    tau_func: Callable[[int], float] | None = None
    algorithm_type: str = "data_prediction"
    lambda_min_clipped: float = -math.inf
    variance_type: str | None = None
    timestep_spacing: str = "linspace"
    steps_offset: int = 0

    def validate(self) -> None:
        super().validate()
        check_order(self, "predictor_order", 4)
        check_order(self, "corrector_order", 4)
        if self.tau_func is not None and not callable(self.tau_func):
            raise ConfigError("`SASolver.tau_func` has to be a function of a timestep, or None.")


class SASolverScheduler(SolverScheduler[SASolverConfig]):
    """Stochastic Adams solver (arXiv:2309.05019)."""

    config_class: ClassVar[type[SchedulerConfig]] = SASolverConfig
    add_noise = Scheduler.add_noise

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
        self._choose(
            num_inference_steps,
            device,
            rounded=bool(self._settings.use_karras_sigmas),
            final="sigma_min",
            end_of_ramp=True,
            lambda_min=self._settings.lambda_min_clipped,
        )

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        config, frame = self._settings, self._frame(start)
        tau = config.tau_func or _in_the_middle
        return samplers.sa_solver(
            frame,
            np.array([float(tau(t)) for t in frame.timesteps.tolist()]),
            predictor_order=config.predictor_order,
            corrector_order=config.corrector_order,
            image=config.algorithm_type == "data_prediction",
            lower_order_final=bool(config.lower_order_final),
        )

    step = noisy_step


def _in_the_middle(timestep: int) -> float:
    return 1.0 if 200 <= timestep <= 800 else 0.0
