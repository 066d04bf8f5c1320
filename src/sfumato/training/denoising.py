"""What recipes of second stages share: noise on latents, and the error of the network's answer.

Rombach et al. 2022, equations 2 and 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.config import check_choice
from sfumato.diffusion.schedule import NoiseConfig
from sfumato.errors import ConfigError
from sfumato.training.data import batch_indices
from sfumato.training.loop import DTYPES, TrainConfig
from sfumato.training.losses import (
    PREDICTIONS,
    add_noise,
    diffusion_target,
    min_snr_weight,
    stratified_timesteps,
    weighted_mse,
)

#: Fields of a scheduler that say how noise is added in training.
NOISE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")

#: ``(numbers of the examples, noisy latents, timesteps) -> answer``
Ask = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class DenoisingTraining(TrainConfig):
    """How to train a network that takes noise away.

    Attributes:
        prediction_type: what the UNet answers: ``epsilon``, ``v_prediction`` or ``sample``.
        snr_gamma: cap of the min-SNR weighting; None weighs all noise levels alike.
        timestep_shift: above 1, high noise levels are trained on more often, see
            `stratified_timesteps`.
    """

    prediction_type: str = "v_prediction"
    snr_gamma: float | None = 5.0
    timestep_shift: float = 1.0

    def validate(self) -> None:
        super().validate()
        check_choice("prediction_type", self.prediction_type, PREDICTIONS)
        if self.snr_gamma is not None and self.snr_gamma <= 0:
            raise ConfigError(f"`snr_gamma` has to be positive but is {self.snr_gamma}.")
        if not 0 < self.timestep_shift <= 100:
            raise ConfigError(
                f"`timestep_shift` has to lie in (0, 100] but is {self.timestep_shift}."
            )


def denoising_loss(
    latents: Tensor,
    alpha_bar: Tensor,
    config: DenoisingTraining,
    index: int,
    generator: torch.Generator,
    ask: Ask,
) -> dict[str, Tensor]:
    """The terms of step ``index``'s loss. Noise is drawn first, timesteps second.

    Args:
        latents: scaled latents of all examples, float32 ``(n, channels, height, width)``.
        alpha_bar: the noise schedule.
        ask: the network, with what it is told about each example.
    """
    chosen = torch.from_numpy(batch_indices(len(latents), config.batch_size, index, config.seed))
    clean = latents[chosen]
    noise = torch.randn(clean.shape, generator=generator)
    steps, shift = len(alpha_bar), config.timestep_shift
    timesteps = stratified_timesteps(len(chosen), steps, generator, shift)
    level = alpha_bar[timesteps]
    noisy = add_noise(clean, noise, level).to(DTYPES[config.dtype])
    answer = ask(chosen, noisy, timesteps)
    target = diffusion_target(clean, noise, level, config.prediction_type)
    weight = min_snr_weight(level, config.prediction_type, config.snr_gamma)
    return {
        "loss": weighted_mse(answer, target, weight),
        "mse": weighted_mse(answer.detach(), target, torch.ones_like(weight)),
    }


def noise_of(scheduler: Any) -> NoiseConfig:
    """The noise schedule of a scheduler."""
    return NoiseConfig(**{key: scheduler.config[key] for key in NOISE_KEYS})


def check_channels(unet: Any, latents: Tensor) -> None:
    """Raise `ConfigError` unless a UNet takes what the first stage gives."""
    if latents.shape[1] != unet.config.in_channels:
        raise ConfigError(
            f"The autoencoder's latents have {latents.shape[1]} channels, but the UNet takes "
            f"{unet.config.in_channels}.",
            hint="Set `in_channels` and `out_channels` in unet.json.",
        )


def check_prediction(scheduler: Any, config: DenoisingTraining, init: Any) -> None:
    """Raise `ConfigError` when a model was trained to predict something else."""
    trained_for = scheduler.config.prediction_type
    if trained_for != config.prediction_type:
        raise ConfigError(
            f"'{init}' was trained for {trained_for}, not {config.prediction_type}.",
            hint=f"Give --prediction-type {trained_for}.",
        )
