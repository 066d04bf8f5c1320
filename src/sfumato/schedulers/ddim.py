"""DDIM under its diffusers name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sfumato.diffusion import samplers
from sfumato.diffusion.frame import as_trained
from sfumato.diffusion.plan import Limit, Plan
from sfumato.diffusion.schedule import spaced_timesteps
from sfumato.diffusion.ways import strided
from sfumato.errors import InputError
from sfumato.schedulers.base import Scheduler, SchedulerOutput
from sfumato.schedulers.config import (
    SchedulerConfig,
    TrainedConfig,
    checked_steps,
    dynamic_limit,
)
from sfumato.schedulers.tables import Table, placed

if TYPE_CHECKING:
    import torch

    from sfumato.diffusion.noise import Generators


@dataclass(frozen=True, kw_only=True)
class ThresholdConfig(TrainedConfig):
    """Settings that limit the denoised picture; see `plan.Limit`.

    Attributes:
        clip_sample: clamp to ``-clip_sample_range .. clip_sample_range``.
        thresholding: dynamic thresholding instead, by the quantile
            ``dynamic_thresholding_ratio``, up to ``sample_max_value``. Not for latents.
    """

    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    @property
    def limit(self) -> Limit | None:
        """What the settings ask for."""
        clip = Limit(clip=self.clip_sample_range) if self.clip_sample else None
        return dynamic_limit(self) or clip


@dataclass(frozen=True, kw_only=True)
class DDIMConfig(ThresholdConfig):
    """Settings of DDIM.

    Attributes:
        set_alpha_to_one: end the last step at no noise; else at training timestep 0.
        steps_offset: added to ``leading`` timesteps.
        timestep_spacing: see `schedule.spaced_timesteps`.
        rescale_betas_zero_snr: make the last training level pure noise.
    """

    set_alpha_to_one: bool = True
    steps_offset: int = 0
    timestep_spacing: str = "leading"
    rescale_betas_zero_snr: bool = False


class DDIMScheduler(Scheduler[DDIMConfig]):
    """Denoising diffusion implicit models (arXiv:2010.02502)."""

    config_class: ClassVar[type[SchedulerConfig]] = DDIMConfig
    final_alpha_cumprod: Table = Table()

    def _prepare(self) -> None:
        super()._prepare()
        self._final = 1.0 if self._settings.set_alpha_to_one else float(self._acp[0])
        self.final_alpha_cumprod = np.float32(self._final)
        self.timesteps = np.arange(len(self) - 1, -1, -1)

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
        self.timesteps = placed(values.round().astype(np.int64), device)

    def plan(
        self, start: int = 0, *, eta: float = 0.0, use_clipped_model_output: bool = False
    ) -> Plan:
        """The table for ``timesteps[start:]``; see `samplers.ddim` for the options."""
        self._require_timesteps()
        timesteps = self._told()[start:]
        return self._table(timesteps, eta, use_clipped_model_output)

    def _table(
        self, timesteps: Any, eta: float, from_limited: bool, below_zero: float | None = None
    ) -> Plan:
        assert self.num_inference_steps is not None
        stride = len(self) // self.num_inference_steps
        below_zero = self._final if below_zero is None else below_zero
        frame = as_trained(
            strided(timesteps, stride, self._acp, below_zero),
            self._settings.prediction_type,
            limit=self._settings.limit,
        )
        return samplers.ddim(frame, eta=eta, noise_from_limited=from_limited)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """One step from ``timestep``, which need not be one of ``timesteps``.

        Args:
            model_output: the network's answer.
            timestep: at which it was asked.
            sample: what it was asked about.
            eta: 0 is deterministic, 1 is as random as DDPM.
            use_clipped_model_output: derive the noise from the limited picture.
            generator: where noise comes from, with ``eta > 0``.
            variance_noise: or the noise itself.
            return_dict: return an output object rather than a tuple.

        Raises:
            InputError: before ``set_timesteps``, or with both sources of noise.
        """
        self._require_timesteps()
        if eta > 0 and variance_noise is not None and generator is not None:
            raise InputError(
                "Cannot pass both generator and variance_noise. Please make sure that either"
                " `generator` or `variance_noise` stays `None`."
            )
        plan = self._table(np.array([int(timestep)]), eta, use_clipped_model_output)
        previous, denoised = self._apply(plan, 0, sample, model_output, generator, variance_noise)
        return SchedulerOutput(previous, denoised) if return_dict else (previous, denoised)

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What a ``v_prediction`` network should answer: ``alpha * noise - sigma * sample``."""
        alpha, sigma = self._training_levels(sample, timesteps)
        return alpha * noise - sigma * sample
