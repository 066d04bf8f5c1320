"""Properties that every sampler's table has, checked with networks of known answers."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import sfumato.schedulers as schedulers
from sfumato.diffusion import samplers
from sfumato.diffusion.advance import Call, State, advance
from sfumato.diffusion.frame import as_trained, over_sigma
from sfumato.diffusion.plan import Limit, Plan
from sfumato.diffusion.schedule import Levels, Schedule
from sfumato.errors import ConfigError, InputError
from tests.diffusion.analytic import Oracle, finish, log_sigmas

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EXACT: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {"clip_sample": False}),
    ("DDPMScheduler", {"clip_sample": False}),
    ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    ("PNDMScheduler", {"set_alpha_to_one": True}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {}),
    *[
        ("DPMSolverMultistepScheduler", {"algorithm_type": kind, "solver_order": order})
        for kind in ("dpmsolver++", "sde-dpmsolver++")
        for order in (1, 2, 3)
    ],
    *[
        ("UniPCMultistepScheduler", {"predict_x0": x0, "solver_order": order})
        for x0 in (True, False)
        for order in (1, 2, 3)
    ],
    ("LCMScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {}),
    *[
        ("DPMSolverSinglestepScheduler", {"solver_order": order, "solver_type": kind})
        for order in (1, 2, 3)
        for kind in ("midpoint", "heun")
    ],
]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [4, 11])
@pytest.mark.parametrize(("name", "config"), EXACT)
def test_with_a_perfect_network_every_sampler_ends_in_the_picture(
    name: str, config: dict[str, Any], steps: int, prediction: str
) -> None:
    if name == "PNDMScheduler" and prediction == "v_prediction":
        return  # it mixes answers of different levels, as diffusers does, which is not exact
    scheduler = getattr(schedulers, name)(**SD, **config, prediction_type=prediction)
    scheduler.set_timesteps(steps)
    plan = scheduler.plan()
    rng = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, 4, 4, generator=rng, dtype=torch.float64)
    noise = torch.randn(image.shape, generator=rng, dtype=torch.float64)
    space = float(plan.input_scale[0])
    alpha = 1 / (plan.sigmas[0] ** 2 + 1) ** 0.5
    x = (image + float(plan.sigmas[0]) * noise) * (1.0 if space != 1 else alpha)
    end = finish(plan, Oracle(plan, prediction, image), x)
    torch.testing.assert_close(end, image, atol=1e-4, rtol=1e-4)


def exact_end(x: torch.Tensor, sigmas: np.ndarray, spread: float, mean: float) -> torch.Tensor:
    """Where the flow takes ``x = image + sigma * noise`` if pictures are normally distributed."""
    grown, shrunk = (spread**2 + sigmas[i] ** 2 for i in (0, -1))
    return mean + (x - mean) * float(shrunk / grown) ** 0.5


def error(make: Any, steps: int, *, in_sigma_space: bool) -> float:
    """Distance from the exact end for a normal distribution of pictures."""
    sigmas, spread, mean = log_sigmas(steps), 0.5, 0.3
    way = Schedule.from_sigmas(np.arange(steps, 0, -1), sigmas)
    plan = make(over_sigma(way) if in_sigma_space else as_trained(way))
    start = torch.linspace(-30, 30, 32, dtype=torch.float64).view(1, 1, 4, 8)
    first, last = ((1 + sigmas[i] ** 2) ** 0.5 for i in (0, -1))
    x = start if in_sigma_space else start / first
    end = finish(plan, Oracle(plan, "epsilon", mean, spread), x)
    end = end if in_sigma_space else end * last
    return float((end - exact_end(start, sigmas, spread, mean)).abs().max())


ORDERS: list[tuple[str, int, Any]] = [
    ("euler", 1, samplers.euler),
    ("ddim", 1, samplers.ddim),
    ("ipndm", 2, samplers.ipndm),  # even steps in neither time nor sigma cost it two orders
    ("dpm 1", 1, lambda s: samplers.dpm_multistep(s, order=1)),
    ("dpm 2", 2, lambda s: samplers.dpm_multistep(s, order=2)),
    ("dpm 2 heun", 2, lambda s: samplers.dpm_multistep(s, order=2, solver_type="heun")),
    ("dpm noise 2", 2, lambda s: samplers.dpm_multistep(s, order=2, image=False)),
    ("lms", 2, samplers.lms),
    ("deis 2", 2, lambda s: samplers.deis(s, order=2)),
    ("unipc 1", 2, lambda s: samplers.unipc(s, order=1)),
    ("unipc 2", 2, lambda s: samplers.unipc(s, order=2)),  # the first step is of low order
]


@pytest.mark.parametrize(("name", "order", "make"), ORDERS, ids=[name for name, *_ in ORDERS])
def test_the_error_falls_with_the_order_of_the_method(name: str, order: int, make: Any) -> None:
    coarse, fine = (error(make, n, in_sigma_space=name in ("euler", "lms")) for n in (40, 80))
    assert coarse / fine > 0.8 * 2**order


def error_of_one_step(make: Any, h: float, row: int = 4) -> float:
    """Distance from the exact flow after one step whose whole past is exact."""
    sigmas, spread, mean = 3 * np.exp(-h * np.arange(row + 4)), 0.5, 0.3
    plan = make(as_trained(Schedule.from_sigmas(np.arange(row + 3, 0, -1), sigmas)))
    begin = torch.linspace(-9, 9, 32, dtype=torch.float64).view(1, 1, 4, 8)
    calls = []
    for i in range(row + 2):
        levels = Levels.from_ratio(sigmas[i : i + 1])
        x = exact_end(begin, sigmas[: i + 1], spread, mean) * float(levels.alpha[0])
        gain = (
            levels.alpha[0] * spread**2 / (levels.alpha[0] ** 2 * spread**2 + levels.sigma[0] ** 2)
        )
        image = mean + float(gain) * (x - float(levels.alpha[0]) * mean)
        noise = (x - float(levels.alpha[0]) * image) / float(levels.sigma[0])
        calls.insert(0, Call(x, x, noise, image, None))
    wanted, now, *past = calls
    state = advance(plan, row, State(now.x, tuple(past)), now.output)
    return float((state.x - wanted.x).abs().max())


STEP_ORDERS: list[tuple[str, int, Any]] = [
    *[
        (
            f"dpm {algorithm} {order}",
            min(order, 2),  # the third takes half of the second difference, as its authors do
            partial(samplers.dpm_multistep, image=image, order=order, lower_order_final=False),
        )
        for algorithm, image in (("dpmsolver", False), ("dpmsolver++", True))
        for order in (1, 2, 3)
    ],
    *[
        (
            f"unipc {kind} {order}",
            order,
            partial(samplers.unipc, order=order, solver_type=kind, predict_x0=image),
        )
        for kind, image in (("bh1", True), ("bh2", True), ("bh2", False))
        for order in (1, 2, 3)
    ],
    *[
        (f"deis {order}", order, partial(samplers.deis, order=order, lower_order_final=False))
        for order in (1, 2, 3)
    ],
]


@pytest.mark.parametrize(
    ("name", "order", "make"), STEP_ORDERS, ids=[name for name, *_ in STEP_ORDERS]
)
def test_a_step_with_an_exact_past_has_the_order_of_the_method(
    name: str, order: int, make: Any
) -> None:
    coarse, fine = error_of_one_step(make, 0.05), error_of_one_step(make, 0.025)
    assert coarse / fine > 0.75 * 2 ** (order + 1)


def every_plan() -> list[tuple[str, Plan]]:
    plans = []
    for name, config in EXACT:
        scheduler = getattr(schedulers, name)(**SD, **config)
        scheduler.set_timesteps(6)
        plans.append((name, scheduler.plan()))
    return plans


def test_a_plan_survives_json() -> None:
    thresholded = schedulers.DDIMScheduler(thresholding=True)
    thresholded.set_timesteps(3)
    learned = schedulers.DDPMScheduler(variance_type="learned_range")
    learned.set_timesteps(3)
    for _, plan in [*every_plan(), ("", thresholded.plan()), ("", learned.plan())]:
        copy = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
        assert copy.timesteps.dtype == plan.timesteps.dtype
        for name, value in vars(plan).items():
            other = getattr(copy, name)
            same = np.array_equal(other, value) if isinstance(value, np.ndarray) else other == value
            assert same, name


def test_a_plan_with_missing_or_unknown_fields_is_refused() -> None:
    values = every_plan()[0][1].to_dict()
    with pytest.raises(ConfigError, match=r"no field 'sigma'. Did you mean 'sigmas'"):
        Plan.from_dict({**values, "sigma": []})
    del values["draws"]
    with pytest.raises(ConfigError, match="lacks draws"):
        Plan.from_dict(values)


def test_wrong_options_are_refused() -> None:
    way = Schedule.from_sigmas(np.arange(3, 0, -1), log_sigmas(3))
    with pytest.raises(ConfigError, match="prediction_type given as noise"):
        over_sigma(way, "noise")
    with pytest.raises(ConfigError, match="variance_type"):
        samplers.ddpm(as_trained(way), variance="none")
    with pytest.raises(InputError, match="eta"):
        samplers.ddim(as_trained(way), eta=2.0)


def test_a_limit_holds_the_denoised_picture_back() -> None:
    way = Schedule.from_sigmas(np.arange(3, 0, -1), np.array([5.0, 2.0, 1.0, 0.0]))
    big = torch.full((1, 1, 2, 2), 9.0)
    for limit, bound in ((Limit(clip=2.5), 2.5), (Limit(quantile=0.9, maximum=1.5), 1.0)):
        plan = samplers.ddim(as_trained(way, limit=limit))
        end = finish(plan, Oracle(plan, "epsilon", big), big)
        torch.testing.assert_close(end, torch.full_like(end, bound))


def test_learned_variance_lies_between_its_bounds() -> None:
    scheduler = schedulers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    fixed = {
        kind: schedulers.DDPMScheduler(variance_type=kind, clip_sample=False)
        for kind in ("fixed_small", "fixed_large")
    }
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    answer = torch.zeros_like(x)
    for mixture, kind in ((-1.0, "fixed_small"), (1.0, "fixed_large")):
        ends = []
        for used, output in (
            (scheduler, torch.cat([answer, answer + mixture], dim=1)),
            (fixed[kind], answer),
        ):
            used.set_timesteps(10)
            ends.append(used.step(output, 500, x, torch.Generator().manual_seed(3)).prev_sample)
        torch.testing.assert_close(*ends)
