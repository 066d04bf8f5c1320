"""Samplers of consistency models, LCM and TCD, under their diffusers names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sfumato.diffusion import samplers
from sfumato.diffusion.frame import as_trained
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.consistency import boundary_weights
from sfumato.diffusion.schedule import Levels
from sfumato.diffusion.ways import chained, distilled_timesteps, evenly_chosen, levels_at
from sfumato.errors import InputError
from sfumato.outputs import BaseOutput
from sfumato.schedulers.base import Scheduler
from sfumato.schedulers.config import (
    SchedulerConfig,
    checked_steps,
    checked_timesteps,
    exactly_one,
)
from sfumato.schedulers.ddim import ThresholdConfig
from sfumato.schedulers.stepped import SteppedScheduler
from sfumato.schedulers.tables import Table, placed

if TYPE_CHECKING:
    import torch

    from sfumato.diffusion.noise import Generators

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig(ThresholdConfig):
    """Settings of the consistency samplers; see `DDIMConfig` for the others.

    Attributes:
        original_inference_steps: timesteps that the model was distilled on.
        timestep_scaling: see `samplers.lcm`.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    original_inference_steps: int = 50
    clip_sample: bool = False
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    timestep_spacing: str = "leading"
    timestep_scaling: float = 10.0
    rescale_betas_zero_snr: bool = False


@dataclass
class LCMSchedulerOutput(BaseOutput):
    """What ``LCMScheduler.step`` returns; ``denoised`` is the model's clean picture."""

    prev_sample: torch.Tensor
    denoised: torch.Tensor | None = None


class ConsistencyScheduler(SteppedScheduler[ConsistencyConfig]):
    """What LCM and TCD share: the timesteps of distillation."""

    config_class: ClassVar[type[SchedulerConfig]] = ConsistencyConfig
    swappable: ClassVar[bool] = False
    final_alpha_cumprod: Table = Table()

    def _prepare(self) -> None:
        super()._prepare()
        self._final = 1.0 if self._settings.set_alpha_to_one else float(self._acp[0])
        self.final_alpha_cumprod = np.float32(self._final)
        self.timesteps = np.arange(len(self) - 1, -1, -1)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        original_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        strength: float = 1.0,
    ) -> None:
        """Choose the timesteps, by number or by hand.

        Args:
            num_inference_steps: how many.
            device: where ``timesteps`` shall be.
            original_inference_steps: in place of the configuration's.
            timesteps: the timesteps themselves, falling.
            strength: share of the way to go, for image-to-image.

        Raises:
            InputError: for values out of range, or unless exactly one is given.
        """
        exactly_one(num_inference_steps=num_inference_steps, custom_timesteps=timesteps)
        if not 0 <= strength <= 1:
            raise InputError(f"The value of strength should in [0.0, 1.0] but is {strength}.")
        original = original_inference_steps or self._settings.original_inference_steps
        if not 1 <= original <= len(self):
            raise InputError(
                f"`original_steps`: {original} cannot be larger than `self.config.train_timesteps`:"
                f" {len(self)} as the unet model trained with this scheduler can only handle"
                f" maximal {len(self)} timesteps."
            )
        origin = self._origin(original, strength, original_inference_steps is not None)
        if timesteps is not None:
            values = np.array(checked_timesteps(timesteps, len(self)), dtype=np.int64)
            _warn_of_unusual(values, origin, original)
            n = len(values)
            values = values[n - min(int(n * strength), n) :]
        else:
            n = checked_steps(num_inference_steps, len(self))
            if n > min(len(origin), original):
                raise InputError(
                    f"`num_inference_steps`: {n} cannot be larger than `original_inference_steps`"
                    f" times `strength`: {original} x {strength}. Make sure to either reduce"
                    " `num_inference_steps`, or to increase `strength`."
                )
            values = evenly_chosen(origin, n)
        self._forget()
        self.num_inference_steps = n
        self.timesteps = placed(values.copy(), device)

    def _origin(self, original: int, strength: float, given: bool) -> np.ndarray:
        """Rising timesteps to choose from; ``given`` if their number was, in this call."""
        return distilled_timesteps(len(self), original, strength)

    def _run_from(self, start: int) -> np.ndarray:
        self._require_timesteps()
        return self._told()[start:]

    @property
    def _ends_clean(self) -> bool:
        """Whether the last timestep is the last step: not so if ``strength`` cut steps off."""
        return len(self._told()) == self.num_inference_steps

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Noise pictures as in training, each at its own timestep; see `Scheduler.add_noise`."""
        return Scheduler.add_noise(self, original_samples, noise, timesteps)

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What a ``v_prediction`` network should answer: ``alpha * noise - sigma * sample``."""
        alpha, sigma = self._training_levels(sample, timesteps)
        return alpha * noise - sigma * sample


def _warn_of_unusual(values: np.ndarray, origin: np.ndarray, original: int) -> None:
    unusual = [int(t) for t in values if t not in origin]
    if unusual:
        logger.warning(
            "The custom timestep schedule contains the following timesteps which are not on the"
            " original training/distillation timestep schedule: %s. You may get unexpected results"
            " when using this timestep schedule.",
            unusual,
        )
    if len(values) > original:
        logger.warning(
            "The custom timestep schedule has %s timesteps, more than the %s of training. You may"
            " get unexpected results.",
            len(values),
            original,
        )


class LCMScheduler(ConsistencyScheduler):
    """Latent consistency sampling (arXiv:2310.04378)."""

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        config, timesteps = self._settings, self._run_from(start)
        way = chained(timesteps, int(timesteps[-1]), self._acp, self._final)
        return samplers.lcm(
            as_trained(way, config.prediction_type, limit=config.limit),
            scaling=config.timestep_scaling,
            ends_clean=self._ends_clean,
        )

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> LCMSchedulerOutput | tuple[torch.Tensor, ...]:
        """The next step.

        Args:
            model_output: the network's answer.
            timestep: at which it was asked; the first one says where the run begins.
            sample: what it was asked about.
            generator: where noise comes from.
            return_dict: return an output object rather than a tuple.
        """
        previous, image = self._advance(sample, model_output, timestep, generator)
        skip, out = boundary_weights(np.array(int(timestep)), self._settings.timestep_scaling)
        denoised = float(out) * image + float(skip) * sample
        return LCMSchedulerOutput(previous, denoised) if return_dict else (previous, denoised)


@dataclass
class TCDSchedulerOutput(BaseOutput):
    """What ``TCDScheduler.step`` returns; ``pred_noised_sample`` is before the fresh noise."""

    prev_sample: torch.Tensor
    pred_noised_sample: torch.Tensor | None = None


class TCDScheduler(ConsistencyScheduler):
    """Trajectory consistency sampling (arXiv:2402.19159).

    It shares LCM's configuration, but never limits the denoised picture.
    """

    def _origin(self, original: int, strength: float, given: bool) -> np.ndarray:
        if given:  # then diffusers chooses from all timesteps of training
            return np.arange(int(len(self) * strength))
        return super()._origin(original, strength, given)

    def _midway(self, start: int, eta: float) -> Levels:
        following = np.append(self._run_from(start)[1:], 0)
        # In float32, so that the same timestep is found below a whole number.
        lower = np.floor(np.float32(1 - eta) * following.astype(np.float32)).astype(np.int64)
        return levels_at(lower, self._acp)

    def plan(self, start: int = 0, *, eta: float = 0.3) -> Plan:
        """The table for ``timesteps[start:]``; ``eta`` is the share of noise, 0 to 1."""
        if not 0 <= eta <= 1:
            raise InputError(f"`eta` has to be between 0 and 1 but is {eta}.")
        way = chained(self._run_from(start), 0, self._acp, self._final)
        return samplers.tcd(
            as_trained(way, self._settings.prediction_type),
            self._midway(start, eta),
            eta=eta,
            ends_clean=self._ends_clean,
        )

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.3,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> TCDSchedulerOutput | tuple[torch.Tensor, ...]:
        """The next step; arguments as of `LCMScheduler.step`, with ``eta`` the share of noise."""
        index = self._locate(timestep)
        previous, image = self._advance(
            sample, model_output, timestep, generator, options={"eta": eta}
        )
        way = chained(self._run_from(index)[:1], 0, self._acp)
        midway = self._midway(index, eta)
        alpha, sigma = float(midway.alpha[0]), float(midway.sigma[0])
        epsilon = (sample - float(way.now.alpha[0]) * image) / float(way.now.sigma[0])
        noised = alpha * image + sigma * epsilon
        return TCDSchedulerOutput(previous, noised) if return_dict else (previous, noised)
