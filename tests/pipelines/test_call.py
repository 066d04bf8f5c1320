"""Calls do not get in each other's way: threads, callbacks that call, exceptions, cancelling."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from sfumato.pipelines.call import Calls, CallState
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.pipelines.tiny import seeded, tiny_pipeline, tiny_scheduler


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return tiny_pipeline(scheduler=tiny_scheduler("UniPCMultistepScheduler"))


def _draw(pipe: Any, seed: int, steps: int = 3, **arguments: Any) -> torch.Tensor:
    return pipe(
        "a boat",
        num_inference_steps=steps,
        generator=seeded(seed),
        output_type="latent",
        **arguments,
    ).images


def test_settings_can_be_read_outside_a_call_but_not_assigned() -> None:
    pipe = tiny_pipeline()
    assert pipe.interrupt is False
    assert pipe.num_timesteps == 0
    _draw(pipe, 0, steps=2, guidance_scale=3.5, guidance_rescale=0.25)
    assert pipe.guidance_scale == 3.5
    assert pipe.guidance_rescale == 0.25
    assert pipe.num_timesteps == 3  # PNDM evaluates the network once more
    assert pipe.do_classifier_free_guidance
    with pytest.raises(AttributeError, match="guidance_scale"):
        pipe.guidance_scale = 2.0


@pytest.mark.parametrize(
    "name", ["PNDMScheduler", "UniPCMultistepScheduler", "EulerAncestralDiscreteScheduler"]
)
def test_threads_that_share_a_pipeline_draw_what_they_draw_alone(name: str) -> None:
    pipe = tiny_pipeline(scheduler=tiny_scheduler(name))
    wishes = [(seed, 2 + seed % 3) for seed in range(6)]
    alone = [_draw(pipe, seed, steps) for seed, steps in wishes]
    with ThreadPoolExecutor(max_workers=4) as pool:
        together = list(pool.map(lambda wish: _draw(pipe, *wish), wishes))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_pipelines_that_share_a_scheduler_do_not_disturb_each_other() -> None:
    first = tiny_pipeline()
    second = StableDiffusionPipeline(**first.components, requires_safety_checker=False)
    second.set_progress_bar_config(disable=True)
    alone = [_draw(first, 1, 4), _draw(second, 2, 2)]
    meet = threading.Barrier(2)

    def slowly(pipe: Any, seed: int, steps: int) -> torch.Tensor:
        def wait(*_: Any) -> None:
            if not meet.broken:
                meet.wait(timeout=60)

        return _draw(pipe, seed, steps, callback_on_step_end=wait)

    with ThreadPoolExecutor(max_workers=2) as pool:
        longer = pool.submit(slowly, first, 1, 2)
        shorter = pool.submit(slowly, second, 2, 2)
        assert torch.equal(shorter.result(), alone[1])
        longer.result()
    assert torch.equal(_draw(first, 1, 4), alone[0])


def test_a_callback_can_call_the_pipeline_that_runs_it(pipe: StableDiffusionPipeline) -> None:
    inner: list[torch.Tensor] = []

    def nested(p: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            inner.append(_draw(p, 8, steps=2, guidance_scale=2.0))
            assert p.guidance_scale == 7.5
            assert p.num_timesteps == 4
        return tensors

    outer = _draw(pipe, 9, steps=4, callback_on_step_end=nested)
    assert torch.equal(outer, _draw(pipe, 9, steps=4))
    assert torch.equal(inner[0], _draw(pipe, 8, steps=2, guidance_scale=2.0))


def test_an_exception_in_a_callback_propagates_and_leaves_the_pipeline_usable(
    pipe: StableDiffusionPipeline,
) -> None:
    expected = _draw(pipe, 3)

    def fail(p: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            raise KeyError("mine")
        return tensors

    with pytest.raises(KeyError, match="mine"):
        _draw(pipe, 3, callback_on_step_end=fail)
    assert pipe._calls._running == {}
    assert torch.equal(_draw(pipe, 3), expected)


def test_a_callback_may_return_nothing(pipe: StableDiffusionPipeline) -> None:
    seen: list[int] = []
    latents = _draw(pipe, 3, callback_on_step_end=lambda p, i, t, x: seen.append(i))
    assert seen == [0, 1, 2]
    assert torch.equal(latents, _draw(pipe, 3))


def test_a_callback_that_returns_no_mapping_is_an_error(pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(ValueError, match="has to return a dict"):
        _draw(pipe, 3, callback_on_step_end=lambda p, i, t, x: x["latents"])


def test_interrupting_keeps_what_was_drawn_so_far(pipe: StableDiffusionPipeline) -> None:
    states: list[torch.Tensor] = []

    def stop(p: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        states.append(tensors["latents"].clone())
        p._interrupt = step == 1
        return tensors

    latents = _draw(pipe, 3, steps=5, callback_on_step_end=stop)
    assert len(states) == 2
    assert torch.equal(latents, states[-1])
    assert pipe.interrupt
    _draw(pipe, 3, steps=2, callback_on_step_end=lambda p, i, t, x: states.append(x["latents"]))
    assert len(states) == 4  # the next call is not interrupted


def test_another_thread_can_interrupt_a_running_call(pipe: StableDiffusionPipeline) -> None:
    started, cancelled = threading.Event(), threading.Event()
    steps: list[int] = []

    def wait(p: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        started.set()
        assert cancelled.wait(timeout=60)
        return tensors

    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(_draw, pipe, 3, 50, callback_on_step_end=wait)
        assert started.wait(timeout=60)
        pipe._interrupt = True
        cancelled.set()
        running.result()
    assert steps == [0]


def test_a_pipeline_can_be_copied_and_pickled_even_after_a_call() -> None:
    pipe = tiny_pipeline()
    expected = _draw(pipe, 1, steps=2)
    assert torch.equal(_draw(copy.deepcopy(pipe), 1, steps=2), expected)
    assert torch.equal(_draw(pickle.loads(pickle.dumps(pipe)), 1, steps=2), expected)


def test_calls_of_one_thread_are_a_stack() -> None:
    calls, outer, inner = Calls(), CallState(), CallState()  # alike, but not the same
    with calls.begin(outer):
        with calls.begin(inner):
            calls.set("guidance_scale", 1.0)
            assert calls.current is inner
        assert calls.current is outer
        assert outer.guidance_scale == 7.5
        assert inner.guidance_scale == 1.0
    assert calls.current is inner  # the last that began
