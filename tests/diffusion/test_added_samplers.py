"""Samplers that ComfyUI and A1111 have beside k-diffusion's, against their formulas."""

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
from sfumato.diffusion.frame import Frame, over_sigma
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.refined import res_multistep
from sfumato.diffusion.samplers.slopes import gradient_estimation, ipndm_v
from sfumato.diffusion.schedule import SIGMA_RAMPS, TABLE_SCHEDULES, Schedule, timestep_at
from sfumato.schedulers import KDiffusionScheduler
from tests.diffusion.analytic import Oracle, finish, log_sigmas
from tests.diffusion.test_samplers import exact_end

Draw = Callable[[], Tensor]
SHAPE = (2, 3, 4, 5)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(x: Tensor, t: Tensor, context: Any = None) -> Tensor:
    return torch.tanh(0.8 * x + float(t) / 700) + 0.3 * torch.roll(x, 1, -1).sin()


class Reference:
    """The network's picture and slope, for loops over sigma."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table

    def picture(self, x: Tensor, sigma: float) -> Tensor:
        time = np.float32(timestep_at(np.array([sigma]), self.table)[0])
        return x - sigma * network(x / (sigma**2 + 1) ** 0.5, torch.tensor(time))

    def slope(self, x: Tensor, sigma: float) -> Tensor:
        return (x - self.picture(x, sigma)) / sigma


def gradient(net: Reference, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    last = None
    for s, t in pairwise(sigmas):
        slope = net.slope(x, s)
        lead = 0 if last is None or t == 0 else slope - last
        x, last = x + (t - s) * (slope + lead), slope
    return x


def heun_ahead(net: Reference, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    for i, (s, t) in enumerate(pairwise(sigmas)):
        slopes, places, here = [net.slope(x, s)], [s], x
        for ahead, after in pairwise(sigmas[i + 1 : i + 4]):
            here = here + slopes[-1] * (ahead - places[-1])
            slopes.append(net.slope(here, ahead))
            places.append(ahead)
            assert after < ahead
        shares = [place / (len(places) * sigmas[0]) for place in places[1:]]
        mean = sum((a * d for a, d in zip(shares, slopes[1:], strict=True)), slopes[0] * 0)
        x = x + (t - s) * (mean + (1 - sum(shares)) * slopes[0])
    return x


def adams(net: Reference, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    slopes: list[Tensor] = []
    for i, (s, t) in enumerate(pairwise(sigmas)):
        slopes = [net.slope(x, s), *slopes[:3]]
        h, *past = [b - a for a, b in pairwise(sigmas[max(i - 3, 0) : i + 2])][::-1]
        weights = [1.0, 0.0, 0.0, 0.0]
        if len(past) >= 1 and t > 0:
            a = past[0]
            weights[0], weights[1] = (2 + h / a) / 2, -(h / a) / 2
        if len(past) >= 2 and t > 0:
            a, b = past[:2]
            temp = (1 - h / (3 * (h + a)) * (h * (h + a)) / (a * (a + b))) / 2
            weights[0] += temp
            weights[1] -= (1 + a / b) * temp
            weights[2] += temp * a / b
        if len(past) == 3 and t > 0:
            a, b, c = past
            temp = (
                (1 - h / (3 * (h + a))) / 2 + (1 - h / (2 * (h + a))) * h / (6 * (h + a + b))
            ) * (h * (h + a) * (h + a + b) / (a * (a + b) * (a + b + c)))
            far = a * (a + b) / (b * (b + c))
            weights[0] += temp
            weights[1] -= (1 + a / b + far) * temp
            weights[2] += (a / b + far * (1 + b / c)) * temp
            weights[3] -= temp * far * a / b
        x = x + (t - s) * sum(w * d for w, d in zip(weights, slopes, strict=False))
    return x


def refined(net: Reference, x: Tensor, sigmas: list[float], draw: Draw, *, eta: float) -> Tensor:
    last = reached = before = None
    for s, t in pairwise(sigmas):
        up = min(t, eta * (t**2 * (s**2 - t**2) / s**2) ** 0.5)
        down = (t**2 - up**2) ** 0.5
        picture = net.picture(x, s)
        if last is None or down == 0:
            x = picture + down / s * (x - picture)
        else:
            h = np.log(s / down)
            first = -np.expm1(-h) / h
            second = (1 - first) / h  # phi_2 of -h
            place = (np.log(reached) - np.log(before)) / h
            weights = first - second / place, second / place
            x = np.exp(-h) * x + h * (weights[0] * picture + weights[1] * last)
        if t > 0 and eta > 0:
            x = x + up * draw()
        last, reached, before = picture, down, s
    return x


def extended(net: Reference, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    def scale(s: Any) -> Any:
        return s * (np.exp(s**0.3) + 10)

    pictures: list[Tensor] = []
    slope = older = torch.zeros(())
    for i, (s, t) in enumerate(pairwise(sigmas)):
        pictures.append(net.picture(x, s))
        if t == 0:
            return pictures[-1]
        r = scale(t) / scale(s)
        x = r * x + (1 - r) * pictures[-1]
        points = t + np.arange(200) * (s - t) / 200
        if i >= 1:
            slope, older = (pictures[-1] - pictures[-2]) / (s - sigmas[i - 1]), slope
            x = x + (t - s + scale(t) * ((s - t) / 200 / scale(points)).sum()) * slope
        if i >= 2:
            curve = (slope - older) / ((s - sigmas[i - 2]) / 2)
            weighted = ((points - s) / scale(points)).sum() * (s - t) / 200
            x = x + ((t - s) ** 2 / 2 + scale(t) * weighted) * curve
        x = x + draw() * (t**2 - s**2 * r**2) ** 0.5
    return x


def restarted(net: Reference, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    steps, way = len(sigmas) - 1, list(pairwise(sigmas))
    if steps >= 20:
        again, times = (9, 1) if steps < 36 else (steps // 4, 2)
        karras = SIGMA_RAMPS["karras"]
        sigmas = [*karras(sigmas[-2], sigmas[0], steps - again * times).tolist(), 0.0]
        way = list(pairwise(sigmas))
        bottom, top = (min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - v)) for v in (0.1, 2))
        back = karras(sigmas[bottom], sigmas[top], again + 1).tolist()
        way = way[:bottom] + list(pairwise(back)) * times + way[bottom:]
    last = way[0][0]
    for s, t in way:
        if s > last:
            x = x + draw() * (s**2 - last**2) ** 0.5
        slope = net.slope(x, s)
        if t > 0:
            slope = (slope + net.slope(x + slope * (t - s), t)) / 2
        x, last = x + slope * (t - s), t
    return x


LOOPS: dict[str, Callable[[Reference, Tensor, list[float], Draw], Tensor]] = {
    "gradient_estimation": gradient,
    "heunpp2": heun_ahead,
    "ipndm_v": adams,
    "res_multistep": partial(refined, eta=0.0),
    "res_multistep_ancestral": partial(refined, eta=1.0),
    "er_sde": extended,
    "restart": restarted,
}


class Turns:
    """Noise in the order in which it is asked for."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def draw(self, shape: Any = SHAPE, dtype: Any = None, device: Any = None) -> Tensor:
        return torch.randn(SHAPE, generator=self.generator)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 20, 36, 41])
@pytest.mark.parametrize("name", LOOPS)
def test_a_run_ends_where_the_published_formula_does(name: str, steps: int) -> None:
    schedules = [*SIGMA_RAMPS, *TABLE_SCHEDULES]
    way = schedules[steps % len(schedules)]
    scheduler = KDiffusionScheduler(sampler=name, schedule=way)
    sigmas = scheduler._spread(steps).astype(np.float32).astype(float).tolist()
    scheduler.set_timesteps(steps)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * sigmas[0]
    want = LOOPS[name](Reference(scheduler._sigma_table), x, sigmas, Turns().draw)
    for step in denoise(network, x, None, scheduler.plan(), noise=Turns()):
        x = step.x
    torch.testing.assert_close(x, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", ["heunpp2", "restart"])
def test_steps_of_several_calls_are_counted(sampler: str) -> None:
    scheduler = KDiffusionScheduler(sampler=sampler)
    scheduler.set_timesteps(24)
    calls = 3 * 24 - 3 if sampler == "heunpp2" else 2 * 24 - 1
    assert len(scheduler.timesteps) == calls
    part = scheduler.plan(start=10 * scheduler.order)
    assert len(part) == calls - 10 * scheduler.order


MEAN, SPREAD = 0.3, 0.5
ORDERS: dict[str, tuple[int, Callable[[Frame], Plan]]] = {
    "res multistep": (2, res_multistep),
    "ipndm_v": (2, ipndm_v),
    "gradient estimation": (1, gradient_estimation),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_order(name: str) -> None:
    order, make = ORDERS[name]
    start = torch.linspace(-30, 30, 32).view(1, 1, 4, 8)
    errors = []
    for steps in (40, 80):
        sigmas = log_sigmas(steps)
        plan = make(over_sigma(Schedule.from_sigmas(np.arange(steps, 0, -1), sigmas)))
        end = finish(plan, Oracle(plan, "epsilon", MEAN, SPREAD), start)
        errors.append(float((end - exact_end(start, sigmas, SPREAD, MEAN)).abs().max()))
    assert errors[0] / errors[1] > 0.8 * 2**order
