"""Euler's method, plain and ancestral, under their diffusers names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sfumato.diffusion import samplers
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.euler import churned
from sfumato.diffusion.schedule import (
    check_sigmas,
    timestep_at,
)
from sfumato.diffusion.ways import Ramp, sigmas_at_timesteps
from sfumato.errors import InputError
from sfumato.schedulers.base import C, SchedulerOutput
from sfumato.schedulers.config import (
    SchedulerConfig,
    TrainedConfig,
    checked_timesteps,
    exactly_one,
    no_custom_timesteps,
    ramp_of,
)
from sfumato.schedulers.sigma import SigmaSpaceConfig, SigmaSpaceScheduler
from sfumato.schedulers.stepped import noisy_step, refuse_integers

if TYPE_CHECKING:
    import torch

    from sfumato.diffusion.noise import Generators


@dataclass(frozen=True, kw_only=True)
class EulerConfig(SigmaSpaceConfig):
    """Settings of Euler's method; see `SigmaSpaceConfig`.

    Attributes:
        interpolation_type: ``linear`` or ``log_linear``, see `ways.sigmas_at_timesteps`.
        sigma_min: smallest sigma of a spread, if not the schedule's.
        sigma_max: largest one.
        timestep_type: ``continuous`` tells a ``v_prediction`` network ``log(sigma) / 4``.
        rescale_betas_zero_snr: make the last training level nearly pure noise.
        final_sigmas_type: end at ``zero`` or at ``sigma_min``.
    """

    pin_last: ClassVar[bool] = True
    predictions: ClassVar[tuple[str, ...]] = (
        "epsilon",
        "sample",
        "v_prediction",
        "original_sample",
    )
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "interpolation_type": ("linear", "log_linear"),
        "timestep_type": ("discrete", "continuous"),
    }

    interpolation_type: str = "linear"
    sigma_min: float | None = None
    sigma_max: float | None = None
    timestep_type: str = "discrete"
    rescale_betas_zero_snr: bool = False
    final_sigmas_type: str = "zero"

    @property
    def continuous(self) -> bool:
        """Whether the network is told the logarithm of sigma."""
        return self.timestep_type == "continuous" and self.prediction_type == "v_prediction"


class EulerScheduler(SigmaSpaceScheduler[C]):
    """What the two Euler schedulers share: before ``set_timesteps``, all sigmas of training."""

    whole_timesteps: ClassVar[bool] = False

    def _prepare(self) -> None:
        super()._prepare()
        self.timesteps = np.arange(len(self) - 1, -1, -1, dtype=np.float32)
        self.sigmas = np.append(self._sigma_table[::-1], 0.0).astype(np.float32)


class EulerDiscreteScheduler(EulerScheduler[EulerConfig]):
    """Euler's method (arXiv:2206.00364, algorithm 2)."""

    config_class: ClassVar[type[SchedulerConfig]] = EulerConfig

    def _prepare(self) -> None:
        super()._prepare()
        if self._settings.continuous:
            self.timesteps = 0.25 * self.sigmas[:-1].log()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Choose the way: by number, or by hand.

        Args:
            num_inference_steps: how many steps.
            device: where ``timesteps`` shall be.
            timesteps: the timesteps themselves, falling.
            sigmas: or the sigmas, falling, with the one where the last step ends.

        Raises:
            InputError: for values out of range, or unless exactly one is given.
        """
        config = self._settings
        if timesteps is not None and sigmas is not None:
            raise InputError("Only one of `timesteps` or `sigmas` should be set.")
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas)
        if sigmas is not None:
            levels = check_sigmas(sigmas)
            steps = timestep_at(levels[:-1], self._sigma_table).astype(np.float32)
        else:
            if timesteps is not None:
                self._check_custom()
                steps = np.array(checked_timesteps(timesteps, len(self)), dtype=np.float32)
            else:
                steps = self._spaced(num_inference_steps)
            steps, levels = sigmas_at_timesteps(
                steps,
                self._sigma_table,
                ramp=ramp_of(config),
                interpolation=config.interpolation_type,
                final=config.final_sigmas_type,
            )
        if config.continuous:
            steps = 0.25 * np.log(levels[:-1])
        self._follow(steps, levels, device)

    def _check_custom(self) -> None:
        no_custom_timesteps(
            self._settings, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"
        )
        if self._settings.continuous:
            raise InputError(
                "Cannot set `timesteps` with `config.timestep_type = 'continuous'` and"
                " `config.prediction_type = 'v_prediction'`."
            )

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
        churn = churned(
            frame.now.sigma,
            s_churn=s_churn,
            s_tmin=s_tmin,
            s_tmax=s_tmax,
            steps=len(self._listed()) - 1,
        )
        denoised = frame.denoised.copy()
        if self._settings.prediction_type == "epsilon":
            denoised[:, 1] = -churn
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
        """The next step.

        Args:
            model_output: the network's answer.
            timestep: at which it was asked; the first one says where the run begins.
            sample: what it was asked about, before `scale_model_input`.
            s_churn: fresh noise to add; see `samplers.euler`.
            s_tmin: smallest sigma to add it at.
            s_tmax: largest sigma to add it at.
            s_noise: factor on it.
            generator: where it comes from.
            return_dict: return an output object rather than a tuple.

        Raises:
            InputError: for an integer timestep, or after the last step.
        """
        churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        result = self._advance(sample, model_output, timestep, generator, options=churn)
        return self._result(result, return_dict)

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What a ``v_prediction`` network should answer.

        Number the levels by position in ``timesteps``, from the noisy end, as diffusers does; for
        training use the method of another scheduler, which numbers them by timestep.
        """
        refuse_integers(timesteps, type(self))
        import torch

        rows = torch.tensor([self.index_for_timestep(t) for t in timesteps])
        alpha, sigma = self._training_levels(sample, rows)
        return alpha * noise - sigma * sample


@dataclass(frozen=True, kw_only=True)
class EulerAncestralConfig(TrainedConfig):
    """Settings of the ancestral method; see `EulerConfig`."""

    pin_last: ClassVar[bool] = True

    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False


class EulerAncestralDiscreteScheduler(EulerScheduler[EulerAncestralConfig]):
    """Euler's method with fresh noise at every step."""

    config_class: ClassVar[type[SchedulerConfig]] = EulerAncestralConfig

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
        steps = self._spaced(num_inference_steps)
        self._follow(*sigmas_at_timesteps(steps, self._sigma_table, ramp=Ramp()), device)

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        return samplers.ddim(self._frame(start), eta=1.0)

    step = noisy_step
