"""DPM-Solver and DPM-Solver++, singlestep, under their diffusers name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sfumato.diffusion import samplers
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.singlestep import call_orders
from sfumato.schedulers.config import SchedulerConfig, exactly_one
from sfumato.schedulers.dpmsolver_multistep import SOLVER_TRANSLATIONS, check_solver
from sfumato.schedulers.solver import SolverConfig, SolverScheduler
from sfumato.schedulers.stepped import noisy_step

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class DPMSolverSinglestepConfig(SolverConfig):
    """Settings of the singlestep DPM-Solvers; see `DPMSolverMultistepConfig`.

    Attributes:
        lower_order_final: end with lower orders. It is so in any case when the number of steps
            is no multiple of the order, and when the last step ends at no noise.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
    }
    translations: ClassVar[Mapping[str, Mapping[str, str]]] = SOLVER_TRANSLATIONS

    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = False
    final_sigmas_type: str = "zero"
    lambda_min_clipped: float = -math.inf
    variance_type: str | None = None

    def validate(self) -> None:
        super().validate()
        check_solver(self)


class DPMSolverSinglestepScheduler(SolverScheduler[DPMSolverSinglestepConfig]):
    """DPM-Solver++ whose steps of higher order take several calls from one point.

    ``timesteps`` lists the calls, and they are what is counted.
    """

    config_class: ClassVar[type[SchedulerConfig]] = DPMSolverSinglestepConfig

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose the way; arguments as of `DPMSolverMultistepScheduler.set_timesteps`."""
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        config = self._settings
        self._choose(
            num_inference_steps,
            device,
            timesteps,
            mu=mu,
            rounded=bool(config.use_karras_sigmas),
            final=config.final_sigmas_type,
            lambda_min=config.lambda_min_clipped,
        )

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        self._require_timesteps()
        config, n = self._settings, len(self._told())
        ends_clean = config.final_sigmas_type == "zero"
        uneven = n % config.solver_order != 0
        orders = call_orders(
            n,
            config.solver_order,
            lower_order_final=bool(config.lower_order_final) or ends_clean or uneven,
            ends_clean=ends_clean,
        )
        algorithm = config.algorithm_type
        return samplers.singlestep(
            self._frame(start),
            orders[start:],
            image=algorithm.endswith("++"),
            eta=1.0 if algorithm.startswith("sde") else 0.0,
            solver_types=config.solver_type,
            more_curve=algorithm == "sde-dpmsolver++",
        )

    step = noisy_step
