"""How fast samplers come to the answer on a Gaussian whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.diffusion import samplers
from sfumato.diffusion.frame import Frame, as_trained, over_sigma
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.named import NAMED
from sfumato.diffusion.schedule import Levels, Schedule
from sfumato.schedulers import KDiffusionScheduler, SASolverScheduler
from tests.diffusion.analytic import Oracle, finish, log_sigmas
from tests.diffusion.test_samplers import error_of_one_step, exact_end

SPREAD, MEAN = 0.5, 0.3
START = torch.linspace(-30, 30, 32, dtype=torch.float64).view(1, 1, 4, 8)


def several_calls(steps: int, places: tuple[float, ...]) -> Schedule:
    """A way with calls at these places of every step, in log sigma; 0 is its start."""
    logs = np.log(log_sigmas(steps))
    spots = logs[:-1, None] + np.diff(logs)[:, None] * np.array(places)
    goals = logs[:-1, None] + np.diff(logs)[:, None] * np.array([*places[1:], 1.0])
    now, following = (Levels.from_ratio(np.exp(log.flatten())) for log in (spots, goals))
    return Schedule(np.arange(len(now.alpha), 0, -1), now, following)


def error(make: Callable[[Frame], Plan], places: tuple[float, ...], steps: int) -> float:
    """Distance from the exact end, over sigma."""
    plan, sigmas = make(over_sigma(several_calls(steps, places))), log_sigmas(steps)
    end = finish(plan, Oracle(plan, "epsilon", MEAN, SPREAD), START)
    return float((end - exact_end(START, sigmas, SPREAD, MEAN)).abs().max())


def repeated(frame: Frame, *, orders: tuple[int, ...], **options: Any) -> Plan:
    return samplers.singlestep(frame, list(orders) * (len(frame) // len(orders)), **options)


THIRDS = (0.0, 1 / 3, 2 / 3)
SINGLESTEP: dict[str, tuple[int, tuple[float, ...], Callable[[Frame], Plan]]] = {
    "heun": (2, (0.0, 1.0), partial(repeated, orders=(1, 2), image=False)),
    "dpm 2": (2, (0.0, 0.5), partial(repeated, orders=(1, 2), image=False)),
    "dpm++ 2s": (2, (0.0, 0.5), partial(repeated, orders=(1, 2))),
    "dpm++ 2s heun": (2, (0.0, 0.5), partial(repeated, orders=(1, 2), solver_types="heun")),
    "dpm 3": (3, THIRDS, partial(repeated, orders=(1, 2, 3), image=False, solver_types="heun")),
    "dpm++ 3s": (3, THIRDS, partial(repeated, orders=(1, 2, 3), solver_types="heun")),
}


@pytest.mark.parametrize("name", SINGLESTEP)
def test_the_error_of_a_singlestep_method_falls_with_its_order(name: str) -> None:
    order, places, make = SINGLESTEP[name]
    coarse, fine = error(make, places, 40), error(make, places, 80)
    assert coarse / fine > 0.8 * 2**order


def sa(frame: Frame, *, tau: float = 0.0, order: int, image: bool) -> Plan:
    orders = {"predictor_order": order, "corrector_order": order, "lower_order_final": False}
    return samplers.sa_solver(frame, np.full(len(frame), tau), image=image, **orders)


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_step_of_sa_solver_without_noise_has_its_order(order: int, image: bool) -> None:
    make = partial(sa, order=order, image=image)
    coarse, fine = error_of_one_step(make, 0.1), error_of_one_step(make, 0.05)
    assert coarse / fine > 0.75 * 2 ** (order + 1)


def test_unipc_of_order_three_and_deis_are_exact_adams_methods_and_so_is_sa_solver() -> None:
    frame = as_trained(Schedule.from_sigmas(np.arange(9, 0, -1), log_sigmas(9)))
    deis = samplers.deis(frame, order=3, lower_order_final=False)
    predictor = partial(samplers.sa_solver, image=False, lower_order_final=False)
    # A corrector that knows one answer more than it needs leaves the predictor's weights alone.
    stochastic = predictor(frame, np.zeros(9), predictor_order=3, corrector_order=1)
    np.testing.assert_allclose(deis.update[3:, :3], stochastic.update[3:, :3], atol=1e-12)
    unified = samplers.unipc(frame, order=3, predict_x0=False, lower_order_final=False)
    np.testing.assert_allclose(deis.update[3:, :3], unified.update[3:, :3], atol=1e-9)


def test_over_sigma_ddim_is_eulers_method() -> None:
    way = Schedule.from_sigmas(np.arange(6, 0, -1), np.append(log_sigmas(6)[:-1], 0.0))
    euler = samplers.euler(over_sigma(way))
    ends = [
        finish(plan, Oracle(plan, "epsilon", MEAN, SPREAD), START)
        for plan in (euler, samplers.ddim(over_sigma(way)))
    ]
    torch.testing.assert_close(*ends, atol=1e-12, rtol=1e-12)


def spread_at_the_end(plan: Plan, start: float) -> tuple[float, float]:
    noise = torch.randn(1, 1, 160, 160, generator=torch.Generator().manual_seed(1))
    end = finish(plan, Oracle(plan, "epsilon", MEAN, SPREAD), noise * start)
    return float(end.mean()), float(end.std())


@pytest.mark.parametrize("name", [name for name, row in NAMED.items() if name != "lcm"])
def test_samplers_draw_from_the_distribution_that_the_network_knows(name: str) -> None:
    scheduler = KDiffusionScheduler(sampler=name)
    first_order = name.startswith("euler_ancestral")  # and noisy
    scheduler.set_timesteps(120 if first_order else 30)
    mean, spread = spread_at_the_end(scheduler.plan(), float(scheduler.init_noise_sigma))
    assert mean == pytest.approx(MEAN, abs=0.03)
    assert spread == pytest.approx(SPREAD, rel=0.06)


@pytest.mark.parametrize("algorithm", ["data_prediction", "noise_prediction"])
def test_sa_solver_draws_from_the_distribution_that_the_network_knows(algorithm: str) -> None:
    scheduler = SASolverScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        algorithm_type=algorithm,
        tau_func=lambda t: 1.0,
        use_karras_sigmas=True,
    )
    scheduler.set_timesteps(60)
    mean, spread = spread_at_the_end(scheduler.plan(), 1.0)
    assert mean == pytest.approx(MEAN, abs=0.03)
    assert spread == pytest.approx(SPREAD, rel=0.06)
