"""Schedulers make plans without torch, and show tensors to who asks for them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from sfumato import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from sfumato.pipelines.sampler_names import SAMPLERS

_PLANS = """
import sys
from sfumato import schedulers
from sfumato.pipelines.sampler_names import SAMPLERS, scheduler_for
for sampler in SAMPLERS:
    class_name, options = scheduler_for(sampler, None)
    scheduler = getattr(schedulers, class_name)(**options)
    scheduler.set_timesteps(7)
    if getattr(scheduler, "adaptive", False):
        print(sampler.name, scheduler.run(None).timesteps)
        continue
    plan = scheduler.plan()
    print(sampler.name, len(plan), f"{plan.sigmas.sum():.4f}", f"{plan.update.sum():.4f}")
assert "torch" not in sys.modules
"""


def test_the_plan_of_every_sampler_is_the_same_without_torch() -> None:
    without = subprocess.run(
        [sys.executable, "-c", _PLANS], check=True, capture_output=True, text=True
    )
    with_torch = "import torch\n" + _PLANS.replace("assert", "print() #")
    beside = subprocess.run(
        [sys.executable, "-c", with_torch], check=True, capture_output=True, text=True
    )
    lines = without.stdout.splitlines()
    assert len(lines) == len(SAMPLERS)
    assert lines == beside.stdout.split("\n\n")[0].splitlines()


def test_timesteps_and_sigmas_are_tensors_on_the_device_asked_for() -> None:
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(5, device="meta")
    assert scheduler.timesteps.device.type == "meta"
    assert isinstance(scheduler.sigmas, torch.Tensor) and scheduler.sigmas.dtype == torch.float32
    assert isinstance(scheduler.alphas_cumprod, torch.Tensor)
    assert scheduler.timesteps is scheduler.timesteps


def test_tensors_can_be_given_as_well() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(5)
    mine = torch.tensor([900, 500, 100])
    scheduler.timesteps = mine
    assert scheduler.timesteps is mine
    assert scheduler.plan().timesteps.tolist() == [900, 500, 100]


def test_what_a_reader_does_to_the_tensors_changes_no_plan() -> None:
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(5)
    before = scheduler.plan()
    scheduler.sigmas.zero_()
    assert np.array_equal(scheduler.plan().sigmas, before.sigmas)


def test_a_table_that_is_not_there_is_an_attribute_error() -> None:
    bare = object.__new__(DDIMScheduler)
    with pytest.raises(AttributeError, match="no attribute 'timesteps'"):
        _ = bare.timesteps
    assert not hasattr(DDIMScheduler, "timesteps")
