"""Noise levels, timesteps and sigmas."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from sfumato.diffusion.quantiles import beta_cdf, beta_quantile
from sfumato.diffusion.schedule import (
    BETA_SCHEDULES,
    SIGMA_RAMPS,
    SPACINGS,
    Levels,
    NoiseConfig,
    alphas_cumprod,
    betas,
    sigma_at,
    spaced_timesteps,
    timestep_at,
    training_sigmas,
)
from sfumato.errors import ConfigError


@pytest.mark.parametrize("name", BETA_SCHEDULES)
@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_the_picture_fades_from_timestep_to_timestep(name: str, n: int) -> None:
    values = alphas_cumprod(NoiseConfig(n, beta_schedule=name))
    assert values.shape == (n,)
    assert (values > 0).all()
    assert (values < 1).all()
    assert (np.diff(values) < 0).all()


def test_rescaling_ends_in_pure_noise_and_keeps_the_first_level() -> None:
    plain, rescaled = (alphas_cumprod(NoiseConfig(rescale_betas_zero_snr=z)) for z in (False, True))
    pinned = alphas_cumprod(NoiseConfig(rescale_betas_zero_snr=True, pin_last=True))
    assert rescaled[-1] == 0
    assert pinned[-1] == 2**-24
    assert rescaled[0] == pytest.approx(plain[0], rel=1e-6)


def test_given_betas_are_used_as_they_are() -> None:
    given = tuple(np.linspace(0.01, 0.2, 7))
    np.testing.assert_allclose(betas(NoiseConfig(7, trained_betas=given)), given, rtol=1e-6)


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'cubic'.*'scaled_linear'"):
        betas(NoiseConfig(beta_schedule="cubic"))
    with pytest.raises(ConfigError, match="even is not supported"):
        spaced_timesteps("even", 5, 1000)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("train_steps", [100, 999, 1000])
def test_every_spacing_gives_as_many_falling_timesteps_as_asked_for(
    spacing: str, train_steps: int
) -> None:
    for steps in range(1, train_steps + 1):
        values = spaced_timesteps(spacing, steps, train_steps)
        assert len(values) == steps
        assert values[0] <= train_steps - 1
        assert values[-1] >= 0
        assert (np.diff(values) < 0).all()


@pytest.mark.parametrize("ramp", SIGMA_RAMPS)
def test_ramps_fall_from_end_to_end(ramp: str) -> None:
    for n in (2, 3, 50):
        sigmas = SIGMA_RAMPS[ramp](0.03, 14.6, n)
        assert len(sigmas) == n
        assert sigmas[0] == pytest.approx(14.6)
        assert sigmas[-1] == pytest.approx(0.03)
        assert (np.diff(sigmas) < 0).all()


def test_timesteps_and_sigmas_are_inverse_at_whole_timesteps() -> None:
    table = training_sigmas(alphas_cumprod(NoiseConfig()))
    timesteps = np.arange(0, 1000, 37).astype(float)
    found = timestep_at(sigma_at(timesteps, table), table)
    np.testing.assert_allclose(found, timesteps, atol=1e-3)
    assert timestep_at(np.array([1e9, 0.0]), table).tolist() == [999, 0]


def test_levels_of_one_ratio_agree() -> None:
    levels = Levels.from_ratio(np.array([14.6, 1.0, 0.0]))
    np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1)
    np.testing.assert_allclose(levels.ratio, [14.6, 1.0, 0.0])
    assert levels.log_snr[2] == math.inf


def test_beta_quantiles_invert_the_distribution() -> None:
    p = np.linspace(0, 1, 101)
    for a, b in ((0.6, 0.6), (2.0, 5.0), (1.0, 1.0)):
        np.testing.assert_allclose(beta_cdf(beta_quantile(p, a, b), a, b), p, atol=1e-12)
    np.testing.assert_allclose(beta_quantile(p, 1.0, 1.0), p, atol=1e-12)


def test_tables_are_made_without_torch() -> None:
    code = (
        "import sys, sfumato.diffusion.samplers, sfumato.diffusion.ways, sfumato.diffusion.advance;"
        " sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
