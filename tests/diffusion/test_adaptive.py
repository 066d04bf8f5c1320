"""DPM adaptive: steps that choose their size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sfumato.diffusion.denoise import denoise
from sfumato.diffusion.noise import GeneratorNoise
from sfumato.errors import ConfigError, InputError, NumericalError
from sfumato.schedulers import DPMAdaptiveScheduler
from tests.diffusion.test_added_samplers import SHAPE, network


def begun(**config: Any) -> tuple[DPMAdaptiveScheduler, torch.Tensor]:
    scheduler = DPMAdaptiveScheduler(**config)
    scheduler.set_timesteps(10)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    return scheduler, noise * float(scheduler.init_noise_sigma)


def finish(model: Any, x: Any, run: Any, noise: Any = None) -> Any:
    *_, last = denoise(model, x, None, run, noise=noise)
    return last.x


def test_smaller_tolerances_take_more_calls_and_come_nearer() -> None:
    ends, calls = {}, {}
    for rtol in (0.3, 0.05, 1e-3):
        scheduler, x = begun(rtol=rtol, atol=rtol / 10)
        run = scheduler.run()
        ends[rtol], calls[rtol] = finish(network, x, run), len(run)
    assert calls[0.3] < calls[0.05] < calls[1e-3]
    far, near = (float((ends[rtol] - ends[1e-3]).abs().max()) for rtol in (0.3, 0.05))
    assert near < far


def test_arrays_end_where_tensors_do() -> None:
    scheduler, x = begun()

    def on_arrays(x: Any, t: Any, context: Any) -> Any:
        return network(torch.from_numpy(x), torch.tensor(float(t))).numpy()

    arrays = finish(on_arrays, x.numpy(), scheduler.run(None))
    tensors = finish(network, x, scheduler.run())
    np.testing.assert_allclose(arrays, tensors.numpy(), atol=1e-4, rtol=1e-4)


def test_a_network_that_no_step_suits_is_given_up() -> None:
    scheduler, x = begun(max_trials=20)
    random = torch.Generator().manual_seed(0)

    def noisy(x: torch.Tensor, t: Any, context: Any) -> torch.Tensor:
        return 1000 * torch.randn(x.shape, generator=random)

    with pytest.raises(NumericalError, match="did not come to an end in 20 trials"):
        finish(noisy, x, scheduler.run())


@pytest.mark.parametrize("calls", [0, 1, 2, 5])
@pytest.mark.parametrize("check", [True, False])
def test_a_network_that_breaks_ends_the_run(calls: int, check: bool) -> None:
    scheduler, x = begun()
    left = [calls]

    def breaking(x: torch.Tensor, t: torch.Tensor, context: Any) -> torch.Tensor:
        left[0] -= 1
        return network(x, t) if left[0] >= 0 else x * torch.nan

    with pytest.raises(NumericalError, match="NaN or infinity in"):
        for _ in denoise(breaking, x, None, scheduler.run(), check_finite=check):
            pass


def test_noise_is_drawn_at_the_end_of_kept_steps_only() -> None:
    scheduler, x = begun(eta=1.0)
    run, seeded = scheduler.run(), GeneratorNoise(torch.Generator().manual_seed(4))
    first = finish(network, x, run, seeded)
    again = scheduler.run(generator=torch.Generator().manual_seed(4))
    assert torch.equal(finish(network, x, again), first)
    with pytest.raises(InputError, match="adds noise"):
        finish(network, x, scheduler.run())


def test_a_run_may_begin_at_a_lower_level() -> None:
    scheduler, x = begun()
    scheduler.set_begin_index(6)
    run = scheduler.run()
    assert run.init_sigma == pytest.approx(float(scheduler.sigmas[6]))
    noised = scheduler.add_noise(torch.zeros_like(x), torch.ones_like(x), scheduler.timesteps[6:7])
    assert float(noised.mean()) == pytest.approx(run.init_sigma)
    finish(network, noised, run)
    assert run.share == 1


def test_a_table_and_steps_of_ones_own_are_refused() -> None:
    scheduler, x = begun()
    for call in (scheduler.plan, lambda: scheduler.step(x, scheduler.timesteps[0], x)):
        with pytest.raises(InputError, match="as it goes"):
            call()


@pytest.mark.parametrize("wrong", [{"order": 4}, {"rtol": 0.0}, {"eta": 2}, {"max_trials": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DPMAdaptiveScheduler(**wrong)
