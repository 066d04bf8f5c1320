"""DPM-Solver and DPM-Solver++, multistep, under their diffusers name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from sfumato.diffusion import samplers
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.dpm import ALGORITHMS
from sfumato.diffusion.ways import Ramp
from sfumato.errors import ConfigError
from sfumato.schedulers.config import SchedulerConfig, exactly_one
from sfumato.schedulers.solver import SolverScheduler, SpacedSolverConfig
from sfumato.schedulers.stepped import given_noise_step

if TYPE_CHECKING:
    import torch

if TYPE_CHECKING:
    from sfumato.schedulers.dpmsolver_singlestep import DPMSolverSinglestepConfig


#: What other solvers' words mean for a DPM-Solver.
SOLVER_TRANSLATIONS: Mapping[str, Mapping[str, str]] = {
    "algorithm_type": {"deis": "dpmsolver++"},
    "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
}


@dataclass(frozen=True, kw_only=True)
class DPMSolverMultistepConfig(SpacedSolverConfig):
    """Settings of the multistep DPM-Solvers; see `SpacedSolverConfig` and `samplers.dpm_multistep`.

    Attributes:
        algorithm_type: one of `ALGORITHMS`.
        solver_type: ``midpoint`` or ``heun``.
        euler_at_final: end with first order.
        use_lu_lambdas: spread sigmas evenly in log(alpha / sigma).
        final_sigmas_type: end at ``zero`` or at ``sigma_min``.
        lambda_min_clipped: leave out levels below this log(alpha / sigma).
        variance_type: ``learned`` or ``learned_range`` for networks with twice the channels, of
            which the second half is not used.
        rescale_betas_zero_snr: make the last training level nearly pure noise.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "algorithm_type": ALGORITHMS,
        "solver_type": ("midpoint", "heun"),
    }
    translations: ClassVar[Mapping[str, Mapping[str, str]]] = SOLVER_TRANSLATIONS

    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    euler_at_final: bool = False
    use_lu_lambdas: bool = False
    final_sigmas_type: str = "zero"
    lambda_min_clipped: float = -math.inf
    variance_type: str | None = None
    rescale_betas_zero_snr: bool = False

    def validate(self) -> None:
        super().validate()
        check_solver(self)


def check_solver(config: DPMSolverMultistepConfig | DPMSolverSinglestepConfig) -> None:
    """Raise `ConfigError` for settings that the DPM-Solvers cannot combine."""
    if config.solver_order > 3:
        raise ConfigError(f"`solver_order` has to be 1, 2 or 3 but is {config.solver_order}.")
    if config.algorithm_type.endswith("++"):
        return
    if config.final_sigmas_type == "zero":
        raise ConfigError(
            f"`final_sigmas_type` {config.final_sigmas_type} is not supported for"
            f" `algorithm_type` {config.algorithm_type}. Please choose `sigma_min` instead."
        )
    if config.prediction_type == "flow_prediction":
        raise ConfigError(
            f"`algorithm_type` {config.algorithm_type} does not know `prediction_type`"
            " flow_prediction.",
            hint="Take `dpmsolver++`.",
        )


def multistep_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `samplers.dpm_multistep` that settings of diffusers' names ask for."""
    algorithm = config["algorithm_type"]
    return {
        "order": config["solver_order"],
        "image": algorithm.endswith("++"),
        "eta": 1.0 if algorithm.startswith("sde") else 0.0,
        "solver_type": config["solver_type"],
        "lower_order_final": bool(config["lower_order_final"]),
        "euler_at_final": bool(config["euler_at_final"]),
        "more_curve": algorithm == "sde-dpmsolver++",
    }


class DPMSolverMultistepScheduler(SolverScheduler[DPMSolverMultistepConfig]):
    """DPM-Solver++ and its relatives (arXiv:2206.00927, 2211.01095); by default DPM++ 2M."""

    config_class: ClassVar[type[SchedulerConfig]] = DPMSolverMultistepConfig

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose the way: by number, or by hand.

        Args:
            num_inference_steps: how many steps.
            device: where ``timesteps`` shall be.
            mu: logarithm of ``flow_shift``, with ``use_dynamic_shifting``.
            timesteps: the timesteps themselves, falling.

        Raises:
            InputError: for values out of range, or unless exactly one is given.
        """
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        config = self._settings
        lu = config.use_lu_lambdas and not config.use_karras_sigmas
        nearest = config.use_karras_sigmas or lu
        self._choose(
            num_inference_steps,
            device,
            timesteps,
            mu=mu,
            ramp=Ramp("lu") if lu else None,
            rounded=nearest and config.beta_schedule != "squaredcos_cap_v2",
            final=config.final_sigmas_type,
            lambda_min=config.lambda_min_clipped,
        )

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        config = self._settings
        table = samplers.dpm_multistep(
            self._frame(start), **multistep_options(config), steps=self.num_inference_steps
        )
        return replace(table, noise_in_float32=True)

    step = given_noise_step
