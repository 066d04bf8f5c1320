"""Multistep sampling of the first consistency models, under its diffusers name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sfumato.diffusion import samplers
from sfumato.diffusion.frame import preconditioned
from sfumato.diffusion.plan import Limit, Plan
from sfumato.diffusion.schedule import Levels, karras_curve
from sfumato.errors import ConfigError
from sfumato.schedulers.config import (
    SchedulerConfig,
    checked_steps,
    checked_timesteps,
    exactly_one,
)
from sfumato.schedulers.stepped import SteppedScheduler, noisy_step
from sfumato.schedulers.tables import placed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class CMStochasticIterativeConfig(SchedulerConfig):
    """Settings of the multistep consistency sampler.

    Attributes:
        num_train_timesteps: how many levels there are to choose from.
        sigma_min: smallest sigma, at which the model's answer is its input.
        sigma_max: largest sigma.
        sigma_data: standard deviation of the pictures.
        s_noise: factor on the noise.
        rho: of the Karras schedule.
        clip_denoised: clamp the picture to -1 .. 1.
    """

    num_train_timesteps: int = 40
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    s_noise: float = 1.0
    rho: float = 7.0
    clip_denoised: bool = True

    def validate(self) -> None:
        super().validate()
        for name in ("sigma_data", "rho"):
            if self[name] <= 0:
                raise ConfigError(f"`{name}` has to be positive but is {self[name]}.")
        if self.num_train_timesteps < 2:
            raise ConfigError("`num_train_timesteps` has to be at least 2.")

    @property
    def limit(self) -> Limit | None:
        """Clipping, if it is on."""
        return Limit(clip=1.0) if self.clip_denoised else None


class CMStochasticIterativeScheduler(SteppedScheduler[CMStochasticIterativeConfig]):
    """To the clean picture, and noise again (arXiv:2303.01469, algorithm 1)."""

    config_class: ClassVar[type[SchedulerConfig]] = CMStochasticIterativeConfig
    swappable: ClassVar[bool] = False
    whole_timesteps: ClassVar[bool] = False
    tuple_has_image: ClassVar[bool] = False

    def _prepare(self) -> None:
        super()._prepare()
        self._follow(np.arange(len(self)))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose the levels, by number or by hand.

        Args:
            num_inference_steps: how many.
            device: where ``timesteps`` shall be.
            timesteps: numbers of levels, falling from below ``num_train_timesteps``.

        Raises:
            InputError: for values out of range, or unless exactly one is given.
        """
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        if timesteps is not None:
            rising = np.array(checked_timesteps(timesteps, len(self)))[::-1]
        else:
            n = checked_steps(num_inference_steps, len(self))
            rising = np.arange(n) * (len(self) // n)
        self._follow(rising, device)
        self.num_inference_steps = len(rising)

    def _follow(self, numbers: np.ndarray, device: str | torch.device | None = None) -> None:
        """Take the levels with these numbers, counted from the noisy end."""
        self._forget()
        config = self._settings
        places = numbers / (len(self) - 1)
        sigmas = karras_curve(places, config.sigma_min, config.sigma_max, config.rho)
        self.timesteps = placed(250 * np.log(sigmas), device)
        self.sigmas = np.append(sigmas, config.sigma_min).astype(np.float32)

    @property
    def init_noise_sigma(self) -> float:
        """The largest sigma."""
        return self._settings.sigma_max

    def scale_model_input(
        self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """``sample`` scaled to a variance of one, as the network was trained."""
        index = self._locate(self.timesteps[0] if timestep is None else timestep)
        sigma = float(self.sigmas[index])
        return sample / math.sqrt(sigma**2 + self._settings.sigma_data**2)

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        self._require_timesteps()
        config, sigmas = self._settings, self._listed()[start:]
        frame = preconditioned(
            self._told()[start:],
            sigmas,
            sigma_data=config.sigma_data,
            limit=config.limit,
            init_sigma=config.sigma_max,
        )
        above = frame.now.sigma - config.sigma_min  # the answer at the smallest sigma is x
        skip = config.sigma_data**2 / (above**2 + config.sigma_data**2)
        out = above * config.sigma_data * frame.input_scale
        frame = replace(frame, denoised=np.stack([skip, out], axis=1))
        spread = np.sqrt(np.maximum(frame.next.sigma**2 - config.sigma_min**2, 0))
        levels = Levels(np.ones_like(spread), config.s_noise * spread)
        return samplers.renoised(frame, levels, np.full(len(frame), len(self._told()) > 1))

    def _levels(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.sigmas.new_ones(len(self.sigmas)), self.sigmas

    step = noisy_step
