"""Samplers of CFG++ against plain loops over their formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.diffusion.denoise import denoise
from sfumato.diffusion.guidance import ClassifierFree
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.named import NAMED
from sfumato.diffusion.schedule import SIGMA_RAMPS, TABLE_SCHEDULES, timestep_at
from sfumato.schedulers import KDiffusionScheduler
from tests.diffusion.test_added_samplers import SHAPE, Turns

Draw = Callable[[], Tensor]
PLUS = [name for name in NAMED if NAMED[name].wants_negative]


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    place = context.view(-1, 1, 1, 1).to(x)
    return torch.tanh(0.8 * x + float(t) / 700 + place) + 0.3 * torch.roll(x, 1, -1).sin()


class Pictures:
    """The guided picture and the negative one, for loops over sigma."""

    def __init__(self, table: np.ndarray, scale: float) -> None:
        self.table, self.scale = table, scale

    def __call__(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        time = torch.tensor(np.float32(timestep_at(np.array([sigma]), self.table)[0]))
        seen = x / (sigma**2 + 1) ** 0.5
        negative, positive = (
            x - sigma * network(seen, time, torch.full((len(x),), place)) for place in (-0.4, 0.5)
        )
        return negative + self.scale * (positive - negative), negative


def down_and_up(s: float, t: float, eta: float) -> tuple[float, float]:
    up = min(t, eta * (t**2 * (s**2 - t**2) / s**2) ** 0.5)
    return (t**2 - up**2) ** 0.5, up


def euler(net: Pictures, x: Tensor, sigmas: list[float], draw: Draw, *, eta: float) -> Tensor:
    for s, t in pairwise(sigmas):
        guided, negative = net(x, s)
        down, up = down_and_up(s, t, eta)
        x = guided + down * (x - negative) / s
        if up > 0:
            x = x + up * draw()
    return x


def multistep(net: Pictures, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    old = None
    for i, (s, t) in enumerate(pairwise(sigmas)):
        guided, negative = net(x, s)
        mix = -t / s * negative
        if old is not None and t > 0:
            r = np.log(sigmas[i - 1] / s) / np.log(s / t)
            mix = mix + (1 - t / s) / (2 * r) * (guided - old)
        x, old = guided + mix + t / s * x, negative
    return x


def two_calls(net: Pictures, x: Tensor, sigmas: list[float], draw: Draw, *, eta: float) -> Tensor:
    for s, t in pairwise(sigmas):
        guided, negative = net(x, s)
        down, up = down_and_up(s, t, eta)
        if down == 0:
            x = guided
        else:
            middle = (s * down) ** 0.5
            between = middle / s * (x + guided - negative) + (1 - middle / s) * guided
            second, _ = net(between, middle)
            x = down / s * (x + guided - negative) + (1 - down / s) * second
        if t > 0 and up > 0:
            x = x + up * draw()
    return x


def refined(net: Pictures, x: Tensor, sigmas: list[float], draw: Draw, *, eta: float) -> Tensor:
    old, reached, before = None, 1.0, 1.0
    for s, t in pairwise(sigmas):
        guided, negative = net(x, s)
        down, up = down_and_up(s, t, eta)
        if old is None or down == 0:
            x = guided + down * (x - negative) / s
        else:
            h = np.log(s / down)
            first = -np.expm1(-h) / h
            share = (1 - first) / h / ((np.log(reached) - np.log(before)) / h)
            x = np.exp(-h) * (x + guided - negative) + h * (
                (first - share) * negative + share * old
            )
        if up > 0:
            x = x + up * draw()
        old, reached, before = negative, down, s
    return x


def gradient(net: Pictures, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    last = None
    for s, t in pairwise(sigmas):
        guided, negative = net(x, s)
        slope = (x - negative) / s
        lead = 0 if last is None or t == 0 else slope - last
        x, last = guided + slope * t + lead * (t - s), slope
    return x


def ddim(net: Pictures, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    """As DDIM writes it: x as the network was trained on it, and the negative prompt's noise."""
    y = x / (1 + sigmas[0] ** 2) ** 0.5
    for s, t in pairwise(sigmas):
        alpha, following = (1 / (1 + level**2) ** 0.5 for level in (s, t))
        guided, negative = net(y / alpha, s)
        noise = (y - alpha * negative) / (1 - alpha**2) ** 0.5
        y = following * guided + (1 - following**2) ** 0.5 * noise
    return y


LOOPS: dict[str, Callable[[Pictures, Tensor, list[float], Draw], Tensor]] = {
    "ddim_cfg_pp": ddim,
    "euler_cfg_pp": partial(euler, eta=0.0),
    "euler_ancestral_cfg_pp": partial(euler, eta=1.0),
    "dpmpp_2m_cfg_pp": multistep,
    "dpmpp_2s_ancestral_cfg_pp": partial(two_calls, eta=1.0),
    "res_multistep_cfg_pp": partial(refined, eta=0.0),
    "res_multistep_ancestral_cfg_pp": partial(refined, eta=1.0),
    "gradient_estimation_cfg_pp": gradient,
}


def test_every_sampler_of_cfg_plus_plus_has_its_formula_here() -> None:
    assert sorted(LOOPS) == sorted(PLUS)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 21])
@pytest.mark.parametrize("name", LOOPS)
def test_a_run_ends_where_the_formula_does(name: str, steps: int) -> None:
    schedules = [*SIGMA_RAMPS, *TABLE_SCHEDULES]
    scheduler = KDiffusionScheduler(sampler=name, schedule=schedules[steps % len(schedules)])
    sigmas = scheduler._spread(steps).astype(np.float32).astype(float).tolist()
    scheduler.set_timesteps(steps)
    assert scheduler.wants_negative
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * sigmas[0]
    scale = [0.6, 1.0, 1.8][steps % 3]
    want = LOOPS[name](Pictures(scheduler._sigma_table, scale), x, sigmas, Turns().draw)
    context = torch.tensor([-0.4, -0.4, 0.5, 0.5])
    guidance = ClassifierFree(scale, tells_negative=True)
    for step in denoise(network, x, context, scheduler.plan(), guidance, Turns()):
        x = step.x
    torch.testing.assert_close(x, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LOOPS)
def test_without_a_negative_answer_it_is_the_sampler_without_it(name: str) -> None:
    ends = []
    for sampler in (name, name.removesuffix("_cfg_pp").replace("ddim", "euler")):
        scheduler = KDiffusionScheduler(sampler=sampler)
        scheduler.set_timesteps(6)
        generator = torch.Generator().manual_seed(5)
        x = torch.randn(SHAPE, generator=generator) * float(scheduler.init_noise_sigma)
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, t)
            output = network(seen, t, torch.zeros(2))
            x = scheduler.step(output, t, x, generator, return_dict=False)[0]
        ends.append(x)
    torch.testing.assert_close(ends[0], ends[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["dpmpp_2m_cfg_pp", "dpmpp_2s_ancestral_cfg_pp"])
def test_a_table_with_negative_pictures_survives_json_and_runs_on_arrays(name: str) -> None:
    scheduler = KDiffusionScheduler(sampler=name, eta=0.0)
    scheduler.set_timesteps(5)
    plan = Plan.from_dict(scheduler.plan().to_dict())
    assert plan.wants_negative
    start = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32) * plan.init_sigma
    context = torch.tensor([-0.4, -0.4, 0.5, 0.5])

    def on_arrays(x: Any, t: Any, context: Any) -> Any:
        return network(torch.from_numpy(x), torch.tensor(float(t)), context).numpy()

    guidance = ClassifierFree([1.5, 0.7], tells_negative=True)
    start_of_arrays: Any = start
    *_, arrays = denoise(on_arrays, start_of_arrays, context, plan, guidance)
    *_, tensors = denoise(network, torch.from_numpy(start), context, plan, guidance)
    np.testing.assert_allclose(np.asarray(arrays.x), tensors.x.numpy(), atol=1e-4, rtol=1e-4)
