"""Scheduler classes as objects: copies, threads, changed settings."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from typing import Any

import pytest
import torch

import sfumato.schedulers as schedulers

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def run(scheduler: Any, start: torch.Tensor, seed: int = 0) -> torch.Tensor:
    x = start * scheduler.init_noise_sigma
    random = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": torch.Generator().manual_seed(seed)} if random else {}
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.tanh(seen), t, x, **options).prev_sample
    return x


def start() -> torch.Tensor:
    return torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def made(name: str) -> Any:
    """A scheduler with Stable Diffusion's settings, as far as it has them, and always one path."""
    known = inspect.signature(getattr(schedulers, name)).parameters
    config = {**SD, "noise_sampler_seed": 5}
    return getattr(schedulers, name)(**{k: v for k, v in config.items() if k in known})


STEPPED = [name for name in schedulers.CLASS_NAMES if name != "DPMAdaptiveScheduler"]


@pytest.mark.parametrize("name", STEPPED)
def test_a_copy_goes_its_own_way(name: str) -> None:
    scheduler = made(name)
    scheduler.set_timesteps(6)
    twins = [copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))]
    end = run(scheduler, start())
    for twin in twins:
        assert twin.config == scheduler.config
        torch.testing.assert_close(run(twin, start()), end)


@pytest.mark.parametrize("name", STEPPED)
def test_set_timesteps_begins_anew(name: str) -> None:
    scheduler = made(name)
    scheduler.set_timesteps(9)
    x, t = start(), scheduler.timesteps[0]
    scheduler.scale_model_input(x, t)
    scheduler.step(x, t, x)
    scheduler.set_timesteps(6)
    end = run(scheduler, start())
    fresh = made(name)
    fresh.set_timesteps(6)
    torch.testing.assert_close(end, run(fresh, start()))


def test_one_plan_serves_many_threads() -> None:
    scheduler = schedulers.UniPCMultistepScheduler(**SD)
    scheduler.set_timesteps(8)
    wanted = run(copy.copy(scheduler), start())
    ends: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: ends.append(run(copy.copy(scheduler), start())))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 8
    for end in ends:
        torch.testing.assert_close(end, wanted)


def test_changed_settings_take_effect() -> None:
    scheduler = schedulers.DDIMScheduler(**SD)
    scheduler.register_to_config(beta_end=0.02, steps_offset=1)
    assert scheduler.config.steps_offset == 1
    fresh = schedulers.DDIMScheduler(**{**SD, "beta_end": 0.02})
    torch.testing.assert_close(scheduler.alphas_cumprod, fresh.alphas_cumprod)


def test_the_constructor_shows_its_arguments() -> None:
    parameters = inspect.signature(schedulers.EulerDiscreteScheduler).parameters
    assert list(parameters)[:3] == ["num_train_timesteps", "beta_start", "beta_end"]
    assert parameters["use_karras_sigmas"].default is False
    by_place = schedulers.DDIMScheduler(500, 0.001, 0.01, "scaled_linear")
    assert by_place.config.num_train_timesteps == 500
    assert by_place.config.beta_schedule == "scaled_linear"


def test_the_published_step_choices_can_be_followed() -> None:
    ays = schedulers.AysSchedules
    scheduler = schedulers.EulerDiscreteScheduler(**SD)
    scheduler.set_timesteps(timesteps=ays["StableDiffusionTimesteps"])
    assert len(scheduler.timesteps) == 10
    scheduler.set_timesteps(sigmas=ays["StableDiffusionSigmas"])
    assert scheduler.timesteps[0] == pytest.approx(999, abs=1)
