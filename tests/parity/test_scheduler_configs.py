"""Scheduler configurations against diffusers: defaults, swapping of classes, files."""

from __future__ import annotations

import copy
import inspect
import json
import random
from pathlib import Path
from typing import Any

import pytest

import sfumato.schedulers as ours

theirs = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

SHARED = tuple(name for name in ours.CLASS_NAMES if hasattr(theirs, name))
COMMON = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OVERRIDES: tuple[dict[str, Any], ...] = (
    {},
    {"timestep_spacing": "trailing"},
    {"prediction_type": "v_prediction"},
    {"steps_offset": 1},
    {"num_train_timesteps": 500},
)


def made(library: Any, name: str) -> Any:
    """A scheduler with Stable Diffusion's settings, as far as it has them."""
    known = inspect.signature(getattr(theirs, name)).parameters
    return getattr(library, name)(**{k: v for k, v in COMMON.items() if k in known})


def public(config: Any) -> dict[str, Any]:
    return {k: v for k, v in dict(config).items() if not k.startswith("_")}


@pytest.mark.parametrize("name", SHARED)
def test_constructor_defaults_are_as_in_diffusers(name: str) -> None:
    mine, other = getattr(ours, name)(), getattr(theirs, name)()
    assert public(mine.config) == public(other.config)
    assert set(mine.config["_use_default_values"]) == set(other.config["_use_default_values"])
    assert len(mine) == len(other)
    assert mine.order == other.order


@pytest.mark.parametrize("name", SHARED)
def test_constructors_take_their_arguments_in_the_order_of_diffusers(name: str) -> None:
    expected = dict(inspect.signature(getattr(theirs, name)).parameters)
    expected.pop("kwargs", None)
    values = [p.default for p in expected.values()]
    assert list(inspect.signature(getattr(ours, name)).parameters) == list(expected)
    config = public(getattr(ours, name)(*values).config)
    assert config == public(getattr(theirs, name)(*values).config)
    with pytest.raises(TypeError, match="arguments"):
        getattr(ours, name)(*values, 1)
    with pytest.raises(TypeError, match="twice"):
        getattr(ours, name)(values[0], **{next(iter(expected)): values[0]})


@pytest.mark.parametrize("seed", range(24))
def test_a_chain_of_swaps_ends_with_the_settings_of_diffusers(seed: int) -> None:
    choose = random.Random(seed)
    names = choose.choices(SHARED, k=4)
    mine, other = made(ours, names[0]), made(theirs, names[0])
    for name in names[1:]:
        changes = choose.choice(OVERRIDES)
        changes = {k: v for k, v in changes.items() if k in public(getattr(ours, name)().config)}
        mine = getattr(ours, name).from_config(mine.config, **changes)
        other = getattr(theirs, name).from_config(other.config, **changes)
        assert public(mine.config) == public(other.config)
        assert set(mine.config["_use_default_values"]) == set(other.config["_use_default_values"])


@pytest.mark.parametrize("seed", range(10))
def test_configurations_pass_between_the_libraries(seed: int) -> None:
    choose = random.Random(seed)
    first, second = choose.choices(SHARED, k=2)
    mine, other = made(ours, first), made(theirs, first)
    wanted = public(getattr(theirs, second).from_config(other.config).config)
    assert public(getattr(ours, second).from_config(other.config).config) == wanted
    assert public(getattr(theirs, second).from_config(mine.config).config) == wanted


@pytest.mark.parametrize("name", SHARED)
def test_files_are_read_by_either_library(name: str, tmp_path: Path) -> None:
    mine, other = made(ours, name), made(theirs, name)
    mine.save_pretrained(tmp_path / "mine")
    other.save_pretrained(tmp_path / "other" / "scheduler")
    files = [p / "scheduler_config.json" for p in (tmp_path / "mine", tmp_path / "other/scheduler")]
    assert json.loads(files[0].read_text()) == json.loads(files[1].read_text())
    read = getattr(theirs, name).from_pretrained(tmp_path / "mine")
    assert public(read.config) == public(mine.config)
    loaded = getattr(ours, name).from_pretrained(tmp_path / "other", subfolder="scheduler")
    assert public(loaded.config) == public(other.config)
    assert set(loaded.config) >= {"_class_name", "_diffusers_version"}


@pytest.mark.parametrize("name", SHARED)
def test_settings_are_attributes_too_though_deprecated(name: str) -> None:
    mine, other = made(ours, name), made(theirs, name)
    for setting in public(other.config):
        assert hasattr(mine, setting), setting
    first = next(iter(public(other.config)))
    with pytest.warns(FutureWarning, match=rf"config\.{first}"):
        assert getattr(mine, first) == mine.config[first]
    with pytest.raises(AttributeError, match="no attribute 'bets'"):
        mine.bets  # noqa: B018
    assert not hasattr(copy.copy(object.__new__(type(mine))), "anything")  # before its settings


def test_settings_are_changed_by_the_private_name_as_pipelines_of_diffusers_do() -> None:
    scheduler = ours.DDIMScheduler(steps_offset=0)
    scheduler._internal_dict = {**scheduler.config, "steps_offset": 1, "clip_sample": False}
    assert (scheduler.config.steps_offset, scheduler.config.clip_sample) == (1, False)
    unset = set(scheduler.config["_use_default_values"])
    assert {"beta_start", "timestep_spacing"} <= unset
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [751, 501, 251, 1]


def test_a_configuration_is_written_to_a_file_and_never_uploaded(tmp_path: Path) -> None:
    scheduler = ours.UniPCMultistepScheduler(solver_order=3)
    scheduler.to_json_file(tmp_path / "any.json")
    assert (tmp_path / "any.json").read_text() == scheduler.to_json_string()
    with pytest.raises(ValueError, match="push_to_hub"):
        scheduler.save_pretrained(tmp_path / "made", push_to_hub=True, repo_id="somebody/something")
    assert not (tmp_path / "made").exists()
    scheduler.save_pretrained(tmp_path / "made", False)
    assert ours.UniPCMultistepScheduler.from_pretrained(tmp_path / "made").config.solver_order == 3


def test_the_enumeration_has_their_numbers() -> None:
    numbers = theirs.schedulers.KarrasDiffusionSchedulers
    assert {m.name: m.value for m in ours.KarrasDiffusionSchedulers} == {
        m.name: m.value for m in numbers
    }


def test_compatible_classes_are_those_of_diffusers_that_exist_here() -> None:
    for name in SHARED:
        wanted = {c.__name__ for c in getattr(theirs, name)().compatibles} & set(ours.CLASS_NAMES)
        assert {c.__name__ for c in getattr(ours, name)().compatibles} == wanted


def test_a_changed_setting_is_swapped_as_in_diffusers() -> None:
    mine, other = ours.DDIMScheduler(**COMMON), theirs.DDIMScheduler(**COMMON)
    for scheduler in (mine, other):
        scheduler.register_to_config(steps_offset=1, clip_sample=False)
    assert public(mine.config) == public(other.config)
    swapped = ours.PNDMScheduler.from_config(mine.config)
    assert public(swapped.config) == public(theirs.PNDMScheduler.from_config(other.config).config)


def test_a_configuration_is_read_without_its_scheduler_as_in_diffusers(tmp_path: Path) -> None:
    made(theirs, "PNDMScheduler").save_pretrained(tmp_path / "scheduler")
    read = ours.DDIMScheduler.load_config(tmp_path, subfolder="scheduler")
    assert read == theirs.DDIMScheduler.load_config(tmp_path, subfolder="scheduler")
    assert ours.DDIMScheduler.load_config(tmp_path / "scheduler", True, eta=1)[1] == {"eta": 1}
    mine = ours.DDIMScheduler.from_config(read)
    assert json.loads(mine.to_json_string())["beta_start"] == 0.00085
