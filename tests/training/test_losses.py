"""Noise, targets and weights of the diffusion loss."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import ConfigError
from sfumato.training.losses import (
    PREDICTIONS,
    add_noise,
    diffusion_target,
    min_snr_weight,
    stratified_timesteps,
    weighted_mse,
)


def test_timesteps_are_spread_evenly() -> None:
    drawn = stratified_timesteps(100, 1000, torch.Generator().manual_seed(0))
    assert sorted(drawn // 10) == list(range(100))


def test_timesteps_are_uniform_over_many_batches() -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.cat([stratified_timesteps(3, 10, generator) for _ in range(4000)])
    counts = torch.bincount(drawn, minlength=10).float()
    assert ((counts / counts.mean() - 1).abs() < 0.08).all()


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_a_shift_moves_the_share_of_high_noise(shift: float) -> None:
    drawn = stratified_timesteps(10_000, 1000, torch.Generator().manual_seed(0), shift)
    for share in (0.25, 0.5, 0.9):
        below = shift * share / (1 + (shift - 1) * share)
        assert abs(float((drawn < 1000 * below).float().mean()) - share) < 0.002


def test_noise_and_target_recover_the_image() -> None:
    x, eps = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    bar = torch.linspace(0.01, 0.99, 5)
    a, s = bar.sqrt().view(-1, 1, 1, 1), (1 - bar).sqrt().view(-1, 1, 1, 1)
    noisy = add_noise(x, eps, bar)
    v = diffusion_target(x, eps, bar, "v_prediction")
    assert torch.allclose(a * noisy - s * v, x, atol=1e-5)
    assert torch.allclose(s * noisy + a * v, eps, atol=1e-5)
    assert diffusion_target(x, eps, bar, "epsilon") is eps
    assert diffusion_target(x, eps, bar, "sample") is x


@pytest.mark.parametrize("gamma", [None, 1.0, 5.0])
def test_min_snr_weights_the_same_error_of_the_image_alike(gamma: float | None) -> None:
    """An error in x0 costs min(SNR, gamma) whichever quantity the network answers with."""
    bar = torch.linspace(0.02, 0.98, 7)
    snr = bar / (1 - bar)
    cost = {
        "sample": min_snr_weight(bar, "sample", gamma),
        "epsilon": min_snr_weight(bar, "epsilon", gamma) * snr,
        "v_prediction": min_snr_weight(bar, "v_prediction", gamma) * (snr + 1),
    }
    for name in PREDICTIONS:
        if gamma is not None:
            assert torch.allclose(cost[name], snr.clamp_max(gamma), rtol=1e-5)


def test_weights_stay_finite_at_zero_signal() -> None:
    for name in PREDICTIONS:
        assert torch.isfinite(min_snr_weight(torch.tensor([0.0]), name, 5.0)).all()


def test_unknown_prediction_lists_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match="'epsilon', 'v_prediction', 'sample'"):
        diffusion_target(*torch.zeros(2, 1, 1), torch.ones(1), "velocity")


def test_weighted_error_is_the_mean_over_images() -> None:
    predicted, target = torch.tensor([[1.0, 3.0], [0.0, 2.0]]), torch.zeros(2, 2)
    assert weighted_mse(predicted, target, torch.tensor([1.0, 0.5])) == (5.0 + 1.0) / 2
