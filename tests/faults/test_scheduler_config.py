"""Wrong scheduler configurations and step counts: each is refused, and the message says why."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato.schedulers as schedulers
from sfumato.errors import CheckpointError, ConfigError, InputError, UnknownKeywordError

ALL = schedulers.CLASS_NAMES
#: Those that a loop over `timesteps` can use.
STEPPED = tuple(name for name in ALL if name != "DPMAdaptiveScheduler")
TAKES_TIMESTEPS = (
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
)


def make(name: str, **config: Any) -> Any:
    return getattr(schedulers, name)(**config)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"num_train_timesteps": 0}, "num_train_timesteps.*integer from 1 to"),
    ({"num_train_timesteps": 10**12}, "num_train_timesteps.*integer from 1 to"),
    ({"num_train_timesteps": -5}, "num_train_timesteps.*integer from 1 to"),
    ({"num_train_timesteps": 1000.5}, "num_train_timesteps.*an integer"),
    ({"num_train_timesteps": True}, "num_train_timesteps.*an integer"),
    ({"beta_start": 0.02, "beta_end": 0.01}, "0 < beta_start <= beta_end < 1"),
    ({"beta_start": 0.0}, "0 < beta_start"),
    ({"beta_end": 1.5}, "beta_end < 1"),
    ({"beta_start": math.nan}, "beta_start.*(NaN|a number)"),
    ({"beta_end": math.inf}, "beta_end.*a number"),
    ({"beta_start": "0.1"}, "beta_start.*a number"),
    ({"beta_schedule": "cubic"}, "beta_schedule.*'scaled_linear'.*'cubic'"),
    ({"prediction_type": "eps"}, "prediction_type.*'epsilon'.*'v_prediction'.*'eps'"),
    ({"prediction_type": "x" * 100_000}, "prediction_type"),
    ({"trained_betas": [0.1, 0.2]}, "trained_betas.*2 entries.*1000"),
    ({"trained_betas": [2.0] * 1000}, "trained_betas.*between 0 and 1"),
]


#: IPNDM's list of betas is one of its own kind.
CASES = [
    (name, config, message)
    for config, message in WRONG
    for name in ALL
    if set(config) <= set(make(name).config) and not (name[0] == "I" and "entries" in message)
]


@pytest.mark.parametrize(("name", "config", "message"), CASES)
def test_a_wrong_value_is_refused_with_the_allowed_ones(
    name: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(name, **config)
    assert len(str(caught.value)) < 500


SPECIAL: list[tuple[str, dict[str, Any], str]] = [
    ("DDIMScheduler", {"timestep_spacing": "even"}, "timestep_spacing.*'trailing'"),
    ("EulerDiscreteScheduler", {"interpolation_type": "cubic"}, "interpolation_type"),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "one"}, "final_sigmas_type"),
    ("EulerDiscreteScheduler", {"timestep_type": "smooth"}, "timestep_type"),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": 1}, "True or False"),
    (
        "EulerDiscreteScheduler",
        {"use_karras_sigmas": True, "use_beta_sigmas": True},
        "Only one of `config.use_beta_sigmas`",
    ),
    ("DDPMScheduler", {"variance_type": "huge"}, "variance_type.*'fixed_small'"),
    ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order.*1, 2 or 3"),
    ("DPMSolverMultistepScheduler", {"solver_order": 0}, "solver_order.*from 1"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpm"}, "algorithm_type.*'dpmsolver\\+\\+'"),
    (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver"},
        "`final_sigmas_type` zero is not supported.*sigma_min",
    ),
    (
        "DPMSolverMultistepScheduler",
        {
            "algorithm_type": "dpmsolver",
            "final_sigmas_type": "sigma_min",
            "prediction_type": "flow_prediction",
        },
        "flow_prediction",
    ),
    ("UniPCMultistepScheduler", {"solver_type": "bh3"}, "solver_type.*'bh1'"),
    ("UniPCMultistepScheduler", {"solver_p": object()}, "solver_p"),
    ("UniPCMultistepScheduler", {"flow_shift": -1.0}, "flow_shift"),
]


@pytest.mark.parametrize(("name", "config", "message"), SPECIAL)
def test_a_wrong_value_of_one_class_is_refused(
    name: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(name, **config)


def test_a_misspelt_keyword_is_named_with_the_closest_one() -> None:
    with pytest.raises(UnknownKeywordError, match="Did you mean 'prediction_type'"):
        make("DDIMScheduler", prediction_typ="epsilon")
    config = make("DDIMScheduler").config
    with pytest.raises(UnknownKeywordError, match="Did you mean 'use_karras_sigmas'"):
        schedulers.EulerDiscreteScheduler.from_config(config, use_karas_sigmas=True)


def test_a_setting_of_another_class_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    config = make("DDIMScheduler").config
    schedulers.PNDMScheduler.from_config(config, use_karras_sigmas=True)
    assert "no setting 'use_karras_sigmas'" in caplog.text


def test_an_unknown_key_of_a_file_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    schedulers.PNDMScheduler.from_config({"skip_prk_step": True})
    assert "'skip_prk_step' is unknown" in caplog.text
    assert "Did you mean 'skip_prk_steps'" in caplog.text


def test_from_config_needs_a_configuration() -> None:
    with pytest.raises(InputError, match="provide a config as the first positional argument"):
        schedulers.DDIMScheduler.from_config()
    with pytest.raises(ConfigError, match="mapping"):
        schedulers.DDIMScheduler.from_config(3)  # pyright: ignore[reportArgumentType]


def test_files_that_are_missing_or_damaged_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        schedulers.DDIMScheduler.from_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    for text in ("", "[]", "{", '{"beta_start": NaN}', '{"beta_start": 1, "beta_start": 2}'):
        file.write_text(text)
        with pytest.raises(ConfigError):
            schedulers.DDIMScheduler.from_pretrained(tmp_path)
    file.write_text(json.dumps({"num_train_timesteps": 10**12}))
    with pytest.raises(ConfigError, match="num_train_timesteps"):
        schedulers.DDIMScheduler.from_pretrained(tmp_path)


def test_saving_to_a_file_is_refused_and_leaves_it_alone(tmp_path: Path) -> None:
    file = tmp_path / "taken"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="should be a directory, not a file"):
        make("DDIMScheduler").save_pretrained(file)
    assert file.read_text() == "mine"


def test_a_configuration_cannot_be_changed_in_place() -> None:
    config = make("EulerDiscreteScheduler").config
    with pytest.raises(TypeError, match="from_config"):
        config["use_karras_sigmas"] = True
    with pytest.raises(TypeError, match="from_config"):
        config.use_karras_sigmas = True
    with pytest.raises(AttributeError, match="no entry 'nothing'"):
        _ = config.nothing


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "20", math.nan, None, [3]])
def test_a_step_count_that_is_no_positive_integer_is_refused(name: str, steps: Any) -> None:
    with pytest.raises(InputError, match="num_inference_steps"):
        make(name).set_timesteps(steps)


@pytest.mark.parametrize("name", ALL)
def test_more_steps_than_training_had_are_refused(name: str) -> None:
    most = 10**6 if "EDM" in name else make(name).config.num_train_timesteps
    for steps in (most + 1, 10**9):
        with pytest.raises(InputError, match=rf"cannot be larger than.*{most}"):
            make(name).set_timesteps(steps)


@pytest.mark.parametrize("name", ALL)
def test_whole_numbers_of_other_types_are_taken(name: str) -> None:
    scheduler = make(name, **({"skip_prk_steps": True} if name == "PNDMScheduler" else {}))
    for steps in (np.int64(5), torch.tensor(5)):
        scheduler.set_timesteps(steps)
        assert scheduler.num_inference_steps == 5


@pytest.mark.parametrize("name", TAKES_TIMESTEPS)
@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([10, 500, 900], "descending"),
        ([900, 500, 500, 10], "descending"),
        ([900, 500, -1], "-1"),
        ([1000, 500], "must start before"),
        ([900, math.nan], "nan"),
        ([900, "a"], "'a'"),
        ([], "empty"),
    ],
)
def test_timesteps_that_cannot_be_followed_are_refused(
    name: str, timesteps: list[Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(name).set_timesteps(timesteps=timesteps)


@pytest.mark.parametrize("name", TAKES_TIMESTEPS)
def test_steps_and_timesteps_exclude_each_other(name: str) -> None:
    with pytest.raises(InputError, match="Can only pass one of"):
        make(name).set_timesteps(3, timesteps=[900, 500, 10])
    with pytest.raises(InputError, match="Must pass exactly one of"):
        make(name).set_timesteps()


@pytest.mark.parametrize(
    "sigmas",
    [[1.0, 2.0, 0.0], [5.0, 1.0, 1.0], [5.0, math.nan, 0.0], [5.0, -1.0], [math.inf, 1.0], [3.0]],
)
def test_sigmas_that_cannot_be_followed_are_refused(sigmas: list[float]) -> None:
    with pytest.raises(InputError, match="sigmas"):
        make("EulerDiscreteScheduler").set_timesteps(sigmas=sigmas)


@pytest.mark.parametrize("ramp", ["karras", "exponential", "beta"])
def test_a_ramp_leaves_no_room_for_timesteps(ramp: str) -> None:
    switch = f"use_{ramp}_sigmas"
    for name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        with pytest.raises(
            InputError, match=f"Cannot set `timesteps` with `config.{switch} = True`"
        ):
            make(name, **{switch: True}).set_timesteps(timesteps=[900, 100])


def test_a_step_before_set_timesteps_is_refused() -> None:
    x = torch.zeros(1, 4, 2, 2)
    for name in set(STEPPED) - {"DDPMScheduler", "DDPMParallelScheduler"}:  # they have training's
        if make(name).num_inference_steps is not None:
            continue  # so have the others of k-diffusion
        whole = getattr(getattr(schedulers, name), "whole_timesteps", True)
        timestep = torch.tensor(999 if whole else 999.0)
        with pytest.raises(InputError, match="you need to run 'set_timesteps'"):
            make(name).step(x, timestep, x)


def test_a_step_after_the_last_is_refused() -> None:
    x = torch.zeros(1, 4, 2, 2)
    for name in STEPPED:
        if "DDIM" in name or "DDPM" in name:  # they take any timestep
            continue
        scheduler = make(name)
        scheduler.set_timesteps(4)
        for t in scheduler.timesteps:
            scheduler.step(x, t, x)
        with pytest.raises(InputError, match="All steps are taken"):
            scheduler.step(x, scheduler.timesteps[-1], x)


@pytest.mark.parametrize("name", [n for n in ALL if "Euler" in n])
def test_a_counter_in_place_of_a_timestep_is_refused(name: str) -> None:
    scheduler, x = make(name), torch.zeros(1, 4, 2, 2)
    scheduler.set_timesteps(4)
    for counter in (0, torch.tensor(0)):
        with pytest.raises(InputError, match="Passing integer indices"):
            scheduler.step(x, counter, x)


def test_a_foreign_timestep_is_refused() -> None:
    scheduler, x = make("EulerDiscreteScheduler"), torch.zeros(1, 4, 2, 2)
    scheduler.set_timesteps(4)
    with pytest.raises(InputError, match="not one of the scheduler's timesteps"):
        scheduler.step(x, 123.4, x)


def test_few_steps_for_runge_kutta_are_refused() -> None:
    with pytest.raises(InputError, match="at least 4 steps"):
        make("PNDMScheduler").set_timesteps(3)


def test_a_timestep_beyond_training_is_refused() -> None:
    scheduler = make("DDIMScheduler", steps_offset=1)
    scheduler.set_timesteps(1000)
    with pytest.raises(InputError, match="Timestep 1000 lies outside of the 1000"):
        scheduler.plan()


def test_more_leading_points_than_timesteps_are_refused() -> None:
    scheduler = make("DPMSolverMultistepScheduler", timestep_spacing="leading")
    with pytest.raises(InputError, match="too many for 'leading'"):
        scheduler.set_timesteps(1000)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_an_eta_outside_of_0_to_1_is_refused(eta: float) -> None:
    for name in ("DDIMScheduler", "TCDScheduler"):
        scheduler = make(name)
        scheduler.set_timesteps(4)
        with pytest.raises(InputError, match="`eta` has to be between 0 and 1"):
            scheduler.plan(eta=eta)


def test_a_strength_outside_of_0_to_1_is_refused() -> None:
    for strength in (-0.1, 1.5, math.nan):
        with pytest.raises(InputError, match="strength"):
            make("LCMScheduler").set_timesteps(4, strength=strength)
    with pytest.raises(InputError, match="increase `strength`"):
        make("LCMScheduler").set_timesteps(4, strength=0.01)


def test_two_sources_of_noise_are_refused() -> None:
    scheduler, x = make("DDIMScheduler"), torch.zeros(1, 4, 2, 2)
    scheduler.set_timesteps(4)
    with pytest.raises(InputError, match="Cannot pass both generator and variance_noise"):
        scheduler.step(x, 750, x, eta=1.0, generator=torch.Generator(), variance_noise=x)
