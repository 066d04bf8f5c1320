"""The loop: what a consumer of its steps can see and change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sfumato.diffusion import samplers
from sfumato.diffusion.advance import State, advance
from sfumato.diffusion.denoise import Step, denoise
from sfumato.diffusion.frame import Frame, as_trained, over_sigma
from sfumato.diffusion.guidance import ClassifierFree
from sfumato.diffusion.noise import GeneratorNoise, SeededNoise
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.run import limit_denoised
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError, NumericalError
from tests.diffusion.analytic import log_sigmas


def network(x: torch.Tensor, timestep: torch.Tensor, context: Any) -> torch.Tensor:
    return torch.tanh(x * 0.5 + timestep * 0.01) + (0 if context is None else context)


def schedule(steps: int = 6) -> Schedule:
    return Schedule.from_sigmas(np.arange(steps, 0, -1), np.append(log_sigmas(steps)[:-1], 0.0))


def way(steps: int = 6, start: int = 0) -> Frame:
    return as_trained(schedule(steps)[start:])


def start(n: int = 1) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_each_step_says_where_it_is() -> None:
    plan = samplers.ddim(way())
    steps = list(denoise(network, start(), None, plan))
    assert [s.index for s in steps] == list(range(6))
    assert [s.timestep.item() for s in steps] == plan.timesteps.tolist()
    assert all(s.x.shape == s.output.shape == (1, 4, 8, 8) for s in steps)
    assert all(s.denoised is not None for s in steps)


def test_no_step_is_taken_ahead_of_its_consumer() -> None:
    calls = []

    def counted(x: torch.Tensor, timestep: torch.Tensor, context: Any) -> torch.Tensor:
        calls.append(timestep.item())
        return network(x, timestep, context)

    steps = denoise(counted, start(), None, samplers.ddim(way()))
    assert calls == []
    next(steps)
    next(steps)
    steps.close()
    assert len(calls) == 2


def test_latents_that_a_consumer_replaces_are_used() -> None:
    plan = samplers.ddim(way())
    replaced = torch.full((1, 4, 8, 8), 0.25)
    after: list[Step] = []
    for step in denoise(network, start(), None, plan):
        if step.index == 2:
            step.x = replaced
        after.append(step)
    other = list(denoise(network, replaced, None, samplers.ddim(way(start=3))))
    torch.testing.assert_close(after[-1].x, other[-1].x)


def test_context_and_guidance_that_a_consumer_replaces_are_used() -> None:
    sizes = []

    def watched(x: torch.Tensor, timestep: torch.Tensor, context: Any) -> torch.Tensor:
        assert len(context) == len(x)
        sizes.append(len(x))
        return network(x, timestep, context)

    context = torch.zeros(4, 4, 8, 8)
    for step in denoise(watched, start(2), context, samplers.ddim(way()), guidance=7.5):
        if step.index == 3:
            step.context, step.guidance = context.chunk(2)[1], 0.0
    assert sizes == [4, 4, 4, 4, 2, 2]


def test_numbers_that_break_are_reported_where_they_break() -> None:
    def overflowing(x: torch.Tensor, timestep: torch.Tensor, context: Any) -> torch.Tensor:
        return x * (float("inf") if timestep == 4 else 1.0)

    with pytest.raises(NumericalError, match="step 3 of 6, timestep 4"):
        list(denoise(overflowing, start(), None, samplers.ddim(way())))
    ends = list(denoise(overflowing, start(), None, samplers.ddim(way()), check_finite=False))
    assert len(ends) == 6


def test_a_sampler_that_needs_noise_asks_for_it() -> None:
    with pytest.raises(InputError, match=r"adds noise.*noise="):
        list(denoise(network, start(), None, samplers.ddim(over_sigma(schedule()), eta=1.0)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_floats_stay_narrow_outside_and_are_wide_inside(dtype: torch.dtype) -> None:
    def narrow(x: torch.Tensor, timestep: torch.Tensor, context: Any) -> torch.Tensor:
        assert x.dtype == dtype
        return network(x.float(), timestep, context).to(dtype)

    plan = samplers.dpm_multistep(way())
    narrow_end = list(denoise(narrow, start().to(dtype), None, plan))[-1].x
    wide_end = list(denoise(network, start(), None, plan))[-1].x
    assert narrow_end.dtype == dtype
    torch.testing.assert_close(narrow_end.float(), wide_end, atol=0.1, rtol=0.1)


def test_pictures_at_different_steps_of_different_plans_share_a_call() -> None:
    plans = [samplers.ddim(way(5)), samplers.unipc(way(9)), samplers.euler(over_sigma(schedule(7)))]
    begun = [State(start()), State(start() * 0.5), State(start() * 20)]
    rows = [0, 0, 0]
    alone = [list(denoise(network, s.x, None, p))[-1].x for s, p in zip(begun, plans, strict=True)]
    ends: list[Any] = [None, None, None]
    while any(row < len(plan) for row, plan in zip(rows, plans, strict=True)):
        running = [i for i in range(3) if rows[i] < len(plans[i]) and (i != 1 or rows[0] > 1)]
        seen = [begun[i].x * float(plans[i].input_scale[rows[i]]) for i in running]
        times = torch.tensor([float(plans[i].timesteps[rows[i]]) for i in running])
        outputs = network(torch.cat(seen), times.view(-1, 1, 1, 1), None).split(1)
        for i, output in zip(running, outputs, strict=True):
            begun[i] = advance(plans[i], rows[i], begun[i], output, limit=limit_denoised)
            rows[i] += 1
            ends[i] = begun[i].x
    for together, by_itself in zip(ends, alone, strict=True):
        torch.testing.assert_close(together, by_itself)


def test_the_arithmetic_is_the_same_on_numpy_arrays() -> None:
    plan = samplers.unipc(way(), order=3)
    x = start().double()
    state = State(x.numpy())
    for row in plan:
        seen = torch.from_numpy(state.x * plan.input_scale[row])
        answer = network(seen, torch.tensor(plan.timesteps[row]), None)
        state = advance(plan, row, state, answer.numpy())
    end = list(denoise(network, x, None, plan))[-1].x
    np.testing.assert_allclose(state.x, end.numpy(), rtol=1e-12, atol=1e-12)


def test_a_run_goes_on_from_a_stored_state_and_a_stored_plan() -> None:
    plan = samplers.dpm_multistep(way(), order=3)
    state = State(start())
    for row in range(len(plan)):
        if row == 3:
            plan = Plan.from_dict(plan.to_dict())
            state = State(state.x.clone(), tuple(state.past))
        answer = network(state.x, torch.tensor(float(plan.timesteps[row])), None)
        state = advance(plan, row, state, answer)
    end = list(denoise(network, start(), None, samplers.dpm_multistep(way(), order=3)))[-1].x
    torch.testing.assert_close(state.x, end)


def test_history_is_no_longer_than_the_plan_needs() -> None:
    plan = samplers.dpm_multistep(way(9), order=3)
    state = State(start())
    for row in plan:
        state = advance(plan, row, state, torch.zeros_like(state.x))
        assert len(state.past) <= 2


def test_a_picture_depends_on_its_own_seed_and_not_on_its_neighbours() -> None:
    plan = samplers.ddim(over_sigma(schedule()), eta=1.0)

    def draw(seeds: list[int]) -> torch.Tensor:
        noise = SeededNoise(seeds)
        x = noise.draw((len(seeds), 4, 8, 8), torch.float32, "cpu") * plan.init_sigma
        return list(denoise(network, x, None, plan, noise=noise))[-1].x

    together = draw([11, 12, 13])
    torch.testing.assert_close(draw([12])[0], together[1])
    torch.testing.assert_close(draw([13, 12])[0], together[2])


def test_a_guidance_can_wrap_another() -> None:
    def doubled(inner: Any, x: torch.Tensor, t: torch.Tensor, context: Any) -> torch.Tensor:
        return 2 * ClassifierFree(1.0)(inner, x, t, context)

    plan = samplers.ddim(way())
    a = next(denoise(network, start(), None, plan, guidance=doubled))
    b = next(denoise(network, start(), None, plan))
    torch.testing.assert_close(a.output, 2 * b.output)


def test_one_generator_serves_start_and_steps() -> None:
    source = GeneratorNoise(torch.Generator().manual_seed(4))
    first = source.draw((2, 4, 8, 8), torch.float32, "cpu")
    assert not torch.equal(first, source.draw((2, 4, 8, 8), torch.float32, "cpu"))
