"""Schedulers for networks with EDM's scalings (arXiv:2206.00364), under their diffusers names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np

from sfumato.diffusion import samplers
from sfumato.diffusion.frame import Frame, preconditioned
from sfumato.diffusion.plan import Limit, Plan
from sfumato.diffusion.samplers.euler import churned
from sfumato.diffusion.schedule import Array, exponential_sigmas, karras_curve
from sfumato.diffusion.ways import final_sigma
from sfumato.errors import ConfigError, InputError
from sfumato.schedulers.base import SchedulerOutput
from sfumato.schedulers.config import (
    MAX_TRAIN_TIMESTEPS,
    SchedulerConfig,
    checked_steps,
    dynamic_limit,
    exactly_one,
)
from sfumato.schedulers.dpmsolver_multistep import SOLVER_TRANSLATIONS, multistep_options
from sfumato.schedulers.solver import check_order
from sfumato.schedulers.stepped import SteppedScheduler, noisy_step

if TYPE_CHECKING:
    import torch

    from sfumato.diffusion.noise import Generators


@dataclass(frozen=True, kw_only=True)
class EDMConfig(SchedulerConfig):
    """Settings of the EDM schedulers.

    Attributes:
        sigma_min: smallest sigma.
        sigma_max: largest sigma.
        sigma_data: standard deviation of the pictures.
        sigma_schedule: ``karras`` or ``exponential``.
        prediction_type: ``epsilon``, or ``v_prediction`` for an output of the other sign.
        rho: of the Karras schedule.
        final_sigmas_type: end at ``zero`` or at ``sigma_min``.
    """

    predictions: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction")
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"sigma_schedule": ("karras", "exponential")}

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    sigma_schedule: str = "karras"
    num_train_timesteps: int = 1000
    prediction_type: str = "epsilon"
    rho: float = 7.0
    final_sigmas_type: str = "zero"

    def validate(self) -> None:
        super().validate()
        for name in ("sigma_data", "rho"):
            if self[name] <= 0:
                raise ConfigError(f"`{name}` has to be positive but is {self[name]}.")


E = TypeVar("E", bound=EDMConfig)


class EDMScheduler(SteppedScheduler[E]):
    """What the EDM schedulers share: the network is told a quarter of log sigma."""

    swappable: ClassVar[bool] = False
    whole_timesteps: ClassVar[bool] = False

    def _spread(self, places: Array) -> Array:
        """Falling sigmas at places on the way: 0 is ``sigma_max`` and 1 is ``sigma_min``."""
        config = self._settings
        if config.sigma_schedule == "exponential":
            # Counted from below, so that a single one is the smallest, as in diffusers.
            return exponential_sigmas(config.sigma_max, config.sigma_min, len(places))[::-1].copy()
        return karras_curve(places, config.sigma_min, config.sigma_max, config.rho)

    def _follow(self, sigmas: Array, end: float, device: str | torch.device | None = None) -> None:
        self._forget()
        import torch

        told = torch.from_numpy(sigmas).float()
        self.sigmas = torch.cat([told, torch.tensor([end], dtype=torch.float32)])
        self.timesteps = (0.25 * told.log()).to(device)

    def _frame(self, start: int) -> Frame:
        """The calls of ``timesteps[start:]``."""
        self._require_timesteps()
        config = self._settings
        return preconditioned(
            self._told()[start:],
            self._listed()[start:],
            config.prediction_type,
            sigma_data=config.sigma_data,
            limit=config.limit,
            init_sigma=self.init_noise_sigma,
        )

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise to start from, and of a picture together."""
        return math.sqrt(self._settings.sigma_max**2 + 1)

    def scale_model_input(
        self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """``sample`` scaled to a variance of one, as the network was trained."""
        index = self._locate(self.timesteps[0] if timestep is None else timestep)
        sigma = float(self.sigmas[index])
        return sample / math.sqrt(sigma**2 + self._settings.sigma_data**2)

    def _levels(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.sigmas.new_ones(len(self.sigmas)), self.sigmas


class EDMEulerScheduler(EDMScheduler[EDMConfig]):
    """Euler's method."""

    config_class: ClassVar[type[SchedulerConfig]] = EDMConfig

    def _prepare(self) -> None:
        super()._prepare()
        sigmas = self._spread(np.arange(len(self) + 1) / len(self))
        self._follow(sigmas, final_sigma(self._settings.final_sigmas_type, sigmas[-1]))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | torch.Tensor | None = None,
    ) -> None:
        """Choose the sigmas.

        Args:
            num_inference_steps: how many.
            device: where ``timesteps`` shall be.
            sigmas: or places on the way between the ends, from 0 (``sigma_max``) to 1
                (``sigma_min``), rising; the name is diffusers'.

        Raises:
            InputError: for values out of range, or unless exactly one is given.
        """
        exactly_one(num_inference_steps=num_inference_steps, sigmas=sigmas)
        if sigmas is None:
            places = np.linspace(0, 1, checked_steps(num_inference_steps, MAX_TRAIN_TIMESTEPS))
        else:
            places = np.asarray(sigmas, dtype=np.float64)
            rising = places.ndim == 1 and len(places) > 0 and (np.diff(places) > 0).all()
            if not rising or not (places >= 0).all() or not (places <= 1).all():
                raise InputError("`sigmas` are places on the way here: they have to rise in 0..1.")
        values = self._spread(places)
        self._follow(values, final_sigma(self._settings.final_sigmas_type, values[-1]), device)
        self.num_inference_steps = len(values)

    def plan(
        self,
        start: int = 0,
        *,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
    ) -> Plan:
        """The table for ``timesteps[start:]``; see `samplers.euler` for the options."""
        frame = self._frame(start)
        steps, sigma = len(self._listed()) - 1, frame.now.sigma
        churn = churned(sigma, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, steps=steps)
        config = self._settings
        denoised = preconditioned(
            frame.timesteps,
            np.append(churn, 0.0),
            config.prediction_type,
            sigma_data=config.sigma_data,
        ).denoised
        return samplers.euler(frame, churn=churn, s_noise=s_noise, denoised=denoised)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """The next step; arguments as of `EulerDiscreteScheduler.step`."""
        churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        result = self._advance(sample, model_output, timestep, generator, options=churn)
        return self._result(result, return_dict)


@dataclass(frozen=True, kw_only=True)
class EDMDPMSolverMultistepConfig(EDMConfig):
    """Settings of DPM-Solver++ for EDM; see `EDMConfig` and `DPMSolverMultistepConfig`."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **EDMConfig.choices,
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
    }
    translations: ClassVar[Mapping[str, Mapping[str, str]]] = SOLVER_TRANSLATIONS

    solver_order: int = 2
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False

    def validate(self) -> None:
        super().validate()
        check_order(self, "solver_order", 3)

    @property
    def limit(self) -> Limit | None:
        """Dynamic thresholding, if it is on."""
        return dynamic_limit(self)


class EDMDPMSolverMultistepScheduler(EDMScheduler[EDMDPMSolverMultistepConfig]):
    """DPM-Solver++, multistep."""

    config_class: ClassVar[type[SchedulerConfig]] = EDMDPMSolverMultistepConfig
    tuple_has_image: ClassVar[bool] = False

    def _prepare(self) -> None:
        super()._prepare()
        self._follow(self._spread(np.linspace(0, 1, len(self))), 0.0)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Choose the sigmas.

        Args:
            num_inference_steps: how many.
            device: where ``timesteps`` shall be.

        Raises:
            InputError: for a number out of range.
        """
        config = self._settings
        n = checked_steps(num_inference_steps, MAX_TRAIN_TIMESTEPS)
        end = final_sigma(config.final_sigmas_type, config.sigma_min)
        self._follow(self._spread(np.linspace(0, 1, n)), end, device)
        self.num_inference_steps = n

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        options = multistep_options(self._settings)
        return samplers.dpm_multistep(self._frame(start), **options, steps=self.num_inference_steps)

    step = noisy_step
