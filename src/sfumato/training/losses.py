"""Diffusion losses: what the network has to predict, and how much each noise level counts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.config import check_choice

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def stratified_timesteps(
    count: int, train_steps: int, generator: torch.Generator, shift: float = 1.0
) -> Tensor:
    """One timestep per image, int64 ``(count,)``, one from each of ``count`` equal slices.

    The same marginal distribution as independent draws with less variance between batches
    (Kingma et al. 2021, "Variational diffusion models", appendix I.1).

    Args:
        shift: above 1 the high noise levels are drawn more often: a share ``u`` of all draws lies
            below ``shift * u / (1 + (shift - 1) * u)`` of the timesteps (Esser et al. 2024,
            "Scaling rectified flow transformers", equation 23).
    """
    offset = torch.rand((), generator=generator)
    position = (torch.arange(count) + offset) / count
    position = shift * position / (1 + (shift - 1) * position)
    shuffled = position[torch.randperm(count, generator=generator)]
    return (shuffled * train_steps).long().clamp(0, train_steps - 1)


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """``sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps`` (Ho et al. 2020, equation 4).

    Args:
        alpha_bar: ``(batch,)``, the cumulative product at each image's timestep.
    """
    alpha_bar = _per_image(alpha_bar, latents)
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def diffusion_target(latents: Tensor, noise: Tensor, alpha_bar: Tensor, prediction: str) -> Tensor:
    """What the network should answer: the noise, ``v = sqrt(a) eps - sqrt(1-a) x0``, or ``x0``.

    ``v`` is from Salimans and Ho 2022, "Progressive distillation", appendix D.

    Raises:
        ConfigError: an unknown prediction type.
    """
    check_choice("prediction_type", prediction, PREDICTIONS)
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return latents
    alpha_bar = _per_image(alpha_bar, latents)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents


def min_snr_weight(alpha_bar: Tensor, prediction: str, gamma: float | None) -> Tensor:
    """Weight of each image's squared error, ``(batch,)``.

    Hang et al. 2023, "Efficient diffusion training via min-SNR weighting": the error of ``x0``
    weighs ``min(SNR, gamma)``; that of ``eps`` is ``SNR`` and that of ``v`` is ``SNR + 1`` times as
    large. ``gamma=None`` leaves every weight at one.
    """
    if gamma is None:
        return torch.ones_like(alpha_bar)
    snr = alpha_bar / (1 - alpha_bar).clamp_min(1e-12)
    capped = snr.clamp_max(gamma)
    if prediction == "epsilon":
        # The limit at zero signal is one, not 0/0.
        return torch.where(snr > 0, capped / snr.clamp_min(1e-20), torch.ones_like(snr))
    return capped / (snr + 1) if prediction == "v_prediction" else capped


def weighted_mse(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error per image, weighted, averaged over the batch."""
    error = F.mse_loss(predicted.float(), target.float(), reduction="none")
    return (error.flatten(1).mean(dim=1) * weight).mean()


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
