"""Noise schedules that no model was trained with: refused when a scheduler is made (row 22)."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from sfumato import schedulers
from sfumato.config import field_names
from sfumato.diffusion.schedule import BETA_SCHEDULES, NoiseConfig, alphas_cumprod
from sfumato.errors import ConfigError
from sfumato.schedulers.storage import all_classes

TRAINED = [cls for cls in all_classes() if "beta_start" in field_names(cls.config_class)]

NONSENSE: list[dict[str, Any]] = [
    {"beta_start": 0.999, "beta_end": 0.999},  # nothing is left after a few timesteps
    {"beta_start": 0.0001, "beta_end": 0.9999999},
    {"beta_start": 0.2, "beta_end": 0.2},
    {"trained_betas": [0.5] * 1000},
    {"beta_start": 1e-12, "beta_end": 1e-12},  # no noise at all in 32-bit numbers
    {"trained_betas": [1e-30] * 1000},
    {"trained_betas": [1e-9] * 999 + [0.5]},
    {"num_train_timesteps": 1_000_000},  # a sound range, far too often
]


@pytest.mark.parametrize("cls", TRAINED)
@pytest.mark.parametrize("config", NONSENSE, ids=lambda c: str(c)[:40])
def test_a_schedule_that_leads_nowhere_is_refused(cls: Any, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"do not lead from a picture .* 0\.00085 to") as e:
        cls(**{"beta_schedule": "linear", **config})
    assert len(str(e.value)) < 500


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("snr", [False, True])
@pytest.mark.parametrize("count", [2, 40, 1000, 4000])
def test_the_usual_schedules_pass(schedule: str, snr: bool, count: int) -> None:
    noise = NoiseConfig(count, 0.0001, 0.02, schedule, rescale_betas_zero_snr=snr)
    values = alphas_cumprod(noise)
    assert (np.diff(values) < 0).all() and 0 < values[0] < 1
    assert (values[-1] == 0) == snr


def test_one_timestep_cannot_be_both_picture_and_pure_noise() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(alphas_cumprod(NoiseConfig(1))) == 1
        with pytest.raises(ConfigError, match="do not lead"):
            alphas_cumprod(NoiseConfig(1, rescale_betas_zero_snr=True))


POSITIVE = {
    "clip_sample_range": (0, -1.0, 1e9, 10**400),
    "dynamic_thresholding_ratio": (0.0, -0.995, 1.5),
    "sample_max_value": (0, -1.0, 1e30),
    "flow_shift": (0, -1.0, 1e300),
    "rho": (0, -7.0, 0.002, 1e9),
    "timestep_scaling": (0.0, -10.0),
    "sigma_min": (0, -0.1, math.nan, math.inf, "0.1", True, 1e30),
    "sigma_max": (0, -0.1, math.nan, math.inf, "80", [1]),
    "steps_offset": (-1, 10**7, 10**30),
    "original_inference_steps": (0, -50, 10**7),
}


@pytest.mark.parametrize("cls", all_classes())
def test_settings_beyond_reason_are_refused(cls: Any) -> None:
    for name, values in POSITIVE.items():
        if name in field_names(cls.config_class):
            for value in values:
                with pytest.raises(ConfigError, match=name):
                    cls(**{name: value})


@pytest.mark.parametrize(
    "name", ["DPMSolverMultistep", "UniPCMultistep", "HeunDiscrete", "DEISMultistep"]
)
def test_ends_of_a_ramp_that_another_class_had_are_checked_when_they_are_used(name: str) -> None:
    """Settings of other classes are kept for a swap back, so a file may bring any value."""
    cls = getattr(schedulers, f"{name}Scheduler")
    scheduler = cls.from_config({"use_karras_sigmas": True, "sigma_min": "x", "sigma_max": -1})
    with pytest.raises(ConfigError, match="sigma_min"):
        scheduler.set_timesteps(4)


def test_the_lower_end_of_a_ramp_lies_below_the_upper() -> None:
    with pytest.raises(ConfigError, match=r"`sigma_min` \(5\) has to be below `sigma_max` \(1\)"):
        schedulers.EulerDiscreteScheduler(sigma_min=5.0, sigma_max=1.0)
