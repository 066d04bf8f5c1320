"""DPM-Solver and DPM-Solver++, singlestep, under their diffusers name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from sfumato.diffusion import samplers
from sfumato.diffusion.noise import Generators
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.dpm_singlestep import call_orders
from sfumato.schedulers.base import SchedulerOutput
from sfumato.schedulers.config import SchedulerConfig, exactly_one
from sfumato.schedulers.dpmsolver_multistep import check_solver
from sfumato.schedulers.solver import SolverConfig, SolverScheduler


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
    translations: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "algorithm_type": {"deis": "dpmsolver++"},
        "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
    }

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
        config, n = self._settings, len(self.timesteps)
        ends_clean = config.final_sigmas_type == "zero"
        uneven = n % config.solver_order != 0
        orders = call_orders(
            n,
            config.solver_order,
            lower_order_final=bool(config.lower_order_final) or ends_clean or uneven,
            ends_clean=ends_clean,
        )
        return samplers.dpm_singlestep(
            self._way_from(start),
            orders[start:],
            config.prediction_type,
            algorithm=config.algorithm_type,
            solver_type=config.solver_type,
            limit=config.limit,
        )

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """The next call's row; arguments as of `DPMSolverMultistepScheduler.step`."""
        previous, denoised = self._advance(sample, model_output, timestep, generator)
        return SchedulerOutput(previous, denoised) if return_dict else (previous,)
