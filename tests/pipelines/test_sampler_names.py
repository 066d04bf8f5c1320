"""The names of samplers: every program's spelling leads to one scheduler class."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest
import torch

import sfumato
from sfumato.diffusion.samplers.named import NAMED
from sfumato.diffusion.schedule import SIGMA_RAMPS, TABLE_SCHEDULES
from sfumato.errors import InputError
from sfumato.pipelines.sampler_names import (
    SAMPLERS,
    SCHEDULES,
    Sampler,
    find_sampler,
    find_schedule,
    names_of,
    scheduler_for,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Euler", "EulerDiscreteScheduler"),  # A1111
        ("euler", "EulerDiscreteScheduler"),  # ComfyUI, sd.cpp
        ("k_euler", "EulerDiscreteScheduler"),
        ("Euler a", "EulerAncestralDiscreteScheduler"),
        ("euler_a", "EulerAncestralDiscreteScheduler"),
        ("euler_ancestral", "EulerAncestralDiscreteScheduler"),
        ("DPM++ 2M", "DPMSolverMultistepScheduler"),
        ("dpm++2m", "DPMSolverMultistepScheduler"),
        ("dpmpp_2m", "DPMSolverMultistepScheduler"),
        ("uni_pc", "UniPCMultistepScheduler"),
        ("UniPC", "UniPCMultistepScheduler"),
        ("PLMS", "PNDMScheduler"),
        ("pndm", "PNDMScheduler"),
        ("DDIM", "DDIMScheduler"),
        ("ddpm", "DDPMScheduler"),
        ("LCM", "LCMScheduler"),
        ("LCMScheduler", "LCMScheduler"),
        ("UniPCMultistepScheduler", "UniPCMultistepScheduler"),
        ("DPM++ SDE", "DPMSolverSDEScheduler"),
        ("dpmpp_2m_sde_gpu", "DPMSolverMultistepScheduler"),
        ("dpmpp_3m_sde", "KDiffusionScheduler"),
        ("DPM++ 2S a", "KDiffusionScheduler"),
        ("dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler"),
        ("dpm_2", "KDPM2DiscreteScheduler"),
        ("heun", "HeunDiscreteScheduler"),
        ("lms", "LMSDiscreteScheduler"),
        ("deis", "DEISMultistepScheduler"),
        ("sa_solver", "SASolverScheduler"),
        ("ipndm", "KDiffusionScheduler"),
        ("dpm_fast", "KDiffusionScheduler"),
        ("dpm_adaptive", "DPMAdaptiveScheduler"),
        ("DPM adaptive", "DPMAdaptiveScheduler"),
        ("euler_cfg_pp", "KDiffusionScheduler"),
        ("gradient_estimation_cfg_pp", "KDiffusionScheduler"),
        ("DDIM CFG++", "KDiffusionScheduler"),
        ("HeunPP2", "KDiffusionScheduler"),
        ("k_dpmpp_3m_sde", "KDiffusionScheduler"),
        ("k_dpmpp_2s_a", "KDiffusionScheduler"),
        ("uni_pc_bh2", "UniPCMultistepScheduler"),
    ],
)
def test_every_spelling_finds_its_class(name: str, expected: str) -> None:
    sampler, schedule = find_sampler(name)
    assert (sampler.class_name, schedule) == (expected, None)


@pytest.mark.parametrize(
    "name", ["DPM++ 2M Karras", "k_dpmpp_2m_karras", "dpm++ 2m KARRAS", "k_dpmpp_2m_ka"]
)
def test_an_old_name_carries_its_schedule(name: str) -> None:
    sampler, schedule = find_sampler(name)
    assert schedule is not None
    assert (sampler.name, schedule.name) == ("DPM++ 2M", "Karras")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddim", "Leading"),
        ("Turbo", "SGM Uniform"),
        ("normal", "Uniform"),
        ("AYS", "Align Your Steps"),
    ],
)
def test_schedules_have_the_names_of_every_program(name: str, expected: str) -> None:
    for sampler in ("DPM++ 2M", "DPM++ 3M SDE", "Euler a"):
        schedule = find_schedule(name, find_sampler(sampler)[0])
        assert schedule is not None
        assert schedule.name == expected


def test_ddim_s_schedule_is_a_stride_apart_in_the_class_and_beside_it() -> None:
    leading = sfumato.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    scheduler = sfumato.KDiffusionScheduler(sampler="euler", schedule="ddim_uniform")
    for steps in (1, 7, 20, 999):
        leading.set_timesteps(steps)
        scheduler.set_timesteps(steps)
        torch.testing.assert_close(scheduler.sigmas, leading.sigmas)
    scheduler.set_timesteps(1000)  # no room for the one more
    assert scheduler.timesteps.round().tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize("name", ["", "karras", "__class__", "Euler b\n", "\0", "e" * 10**6])
def test_an_unknown_name_is_an_error_of_bounded_length(name: str) -> None:
    with pytest.raises(InputError, match="There is no sampler") as caught:
        find_sampler(name)
    assert len(str(caught.value)) < 700


def test_a_misspelling_gets_a_hint() -> None:
    with pytest.raises(InputError, match="Did you mean 'Euler a'"):
        find_sampler("Eulr a")
    with pytest.raises(InputError, match="Did you mean 'Karras'"):
        find_schedule("Karas", find_sampler("Euler")[0])


def test_a_schedule_that_the_sampler_cannot_follow_is_an_error() -> None:
    with pytest.raises(InputError, match=r"DDIM has no schedule Karras.*Uniform"):
        find_schedule("karras", find_sampler("ddim")[0])
    with pytest.raises(InputError, match=r"DPM fast has no schedule Karras.*Automatic"):
        find_schedule("karras", find_sampler("dpm_fast")[0])


def test_one_schedule_switches_off_the_others() -> None:
    sampler = find_sampler("Euler")[0]
    name, options = scheduler_for(sampler, find_schedule("exponential", sampler))
    assert [k for k, v in options.items() if v] == ["use_exponential_sigmas"]
    assert name == "EulerDiscreteScheduler"
    assert scheduler_for(sampler, find_schedule("automatic", sampler)) == (name, {})


def test_a_schedule_that_the_class_does_not_have_comes_from_k_diffusion() -> None:
    sampler = find_sampler("DPM++ 2M")[0]
    found = scheduler_for(sampler, find_schedule("align_your_steps", sampler))
    wanted = {"sampler": "dpmpp_2m", "schedule": "align_your_steps"}
    assert found == ("KDiffusionScheduler", wanted)
    assert names_of(*found) == ("DPM++ 2M", "Align Your Steps")


def test_every_sampler_of_k_diffusion_has_a_row() -> None:
    rows = [s.k_name or s.options.get("sampler") for s in SAMPLERS]
    assert sorted(name for name in rows if name) == sorted(NAMED)
    ways = [s.k_name for s in SCHEDULES if s.k_name]
    assert sorted(ways) == sorted([*SIGMA_RAMPS, *TABLE_SCHEDULES])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_every_pair_of_the_tables_makes_a_scheduler_that_can_run(sampler: Sampler) -> None:
    model = sfumato.PNDMScheduler(beta_schedule="scaled_linear", steps_offset=1)
    for schedule in (None, *(s for s in SCHEDULES if s.name in sampler.schedules)):
        class_name, options = scheduler_for(sampler, schedule)
        scheduler = getattr(sfumato, class_name).from_config(model.config, **options)
        assert {key: scheduler.config[key] for key in options} == options
        scheduler.set_timesteps(5)
        run = scheduler.run() if getattr(scheduler, "adaptive", False) else scheduler.plan()
        assert len(run) >= (1 if sampler.name == "DPM adaptive" else 5)
        name, shown = names_of(class_name, scheduler.config)
        assert name == sampler.name
        if class_name != "KDiffusionScheduler":
            assert shown in (None, schedule and schedule.name)
        elif schedule is not None:
            assert shown == schedule.name


def test_a_scheduler_outside_the_table_goes_by_its_class() -> None:
    assert names_of("OtherScheduler", {}) == ("OtherScheduler", None)
    sde = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}
    assert names_of("DPMSolverMultistepScheduler", sde)[0] == "DPMSolverMultistepScheduler"


def test_no_two_samplers_share_a_name() -> None:
    for rows in (SAMPLERS, SCHEDULES):
        names = [n.casefold() for row in rows for n in (row.name, *row.aliases)]
        assert len(names) == len(set(names))
    assert {name for s in SAMPLERS for name in s.schedules} == {s.name for s in SCHEDULES}
    assert all(getattr(sampler, f.name) for sampler in SAMPLERS for f in fields(sampler)[:2])


def test_the_tables_need_no_torch() -> None:
    code = "import sys, sfumato.pipelines.sampler_names; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_setting_that_a_class_passes_over_names_no_schedule() -> None:
    config = {"use_karras_sigmas": True}
    assert names_of("EulerAncestralDiscreteScheduler", config) == ("Euler a", None)
    assert names_of("EulerDiscreteScheduler", config) == ("Euler", "Karras")
