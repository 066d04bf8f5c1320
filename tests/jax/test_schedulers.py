"""Functional schedulers: step by step what the torch classes do, inside of programs as outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato.schedulers
from sfumato.errors import InputError
from tests.jax.test_pipeline import scheduler

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from sfumato.jax import schedulers as flax  # noqa: E402
from sfumato.jax.schedulers import functional  # noqa: E402

SHAPE = (2, 4, 3, 5)
#: Under diffusers' names, and a few that never had one.
FLAX_NAMES = ("PNDM", "DDIM", "EulerDiscrete", "LMSDiscrete", "DPMSolverMultistep")
NAMES = (*FLAX_NAMES, "UniPCMultistep", "HeunDiscrete", "DEISMultistep")


def drawn(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *SHAPE)).astype(np.float32)


def both(name: str, **options: Any) -> tuple[Any, Any]:
    inner = scheduler(f"{name}Scheduler", **options)
    return inner, functional(type(inner)).from_config(inner.config)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("compiled", [False, True])
def test_every_step_is_that_of_torch(name: str, compiled: bool) -> None:
    inner, outer = both(name)
    inner.set_timesteps(5)
    state = outer.set_timesteps(outer.create_state(), 5, shape=SHAPE)
    times = np.asarray(state.timesteps)
    assert np.allclose(times, inner.timesteps.numpy(), atol=1e-4)
    assert float(state.init_noise_sigma) == pytest.approx(float(inner.init_noise_sigma), rel=1e-6)
    x, *outputs = drawn(len(times) + 1)
    ours, theirs = jnp.asarray(x), torch.from_numpy(x)

    def step(state: Any, output: Any, t: Any, x: Any) -> Any:
        return outer.scale_model_input(state, x, t), *outer.step(
            state, output, t, x, return_dict=False
        )

    step = jax.jit(step) if compiled else step
    for t, told, output in zip(state.timesteps, inner.timesteps, outputs, strict=True):
        expected = inner.scale_model_input(theirs, told)
        theirs = inner.step(torch.from_numpy(output), told, theirs).prev_sample
        seen, ours, state = step(state, output, t, ours)
        np.testing.assert_allclose(seen, expected, rtol=0, atol=2e-5)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_noise_of_a_step_follows_from_the_key_and_the_step() -> None:
    _, outer = both("DDPM")
    state = outer.set_timesteps(outer.create_state(), 3)
    x, output, *_ = drawn(2)

    def next_one(state: Any, key: Any, t: Any) -> Any:
        return outer.step(state, output, t, jnp.asarray(x), key).prev_sample

    keys = [jax.random.PRNGKey(seed) for seed in (0, 0, 1)]
    first, again, other = (next_one(state, key, state.timesteps[0]) for key in keys)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    # Without noise, and what was added to it: another number in every step.
    later = next_one(state, keys[0], state.timesteps[1])
    rows = jax.tree.map(lambda column: column[:2], state.rows)
    added = []
    for row, result in enumerate((first, later)):
        weight = rows.update[row, 0, 4]
        plain = outer.step(
            state.replace(rows=state.rows._replace(update=state.rows.update.at[:, :, 4].set(0))),
            output, state.timesteps[row], jnp.asarray(x),
        ).prev_sample  # fmt: skip
        added.append((np.asarray(result) - np.asarray(plain)) / float(weight))
    assert np.abs(added[0] - added[1]).max() > 0.5
    assert 0.7 < added[0].std() < 1.3


def test_ddim_takes_a_share_of_noise_in_each_step() -> None:
    inner, outer = both("DDIM")
    inner.set_timesteps(4)
    state = outer.set_timesteps(outer.create_state(), 4)
    x, output = drawn(2)
    t, key = inner.timesteps[1], jax.random.PRNGKey(5)
    noise = np.array(jax.random.normal(jax.random.fold_in(key, 1), SHAPE))
    expected = inner.step(
        torch.from_numpy(output), t, torch.from_numpy(x), eta=0.7,
        variance_noise=torch.from_numpy(noise),
    ).prev_sample  # fmt: skip
    found = outer.step(state, output, int(t), jnp.asarray(x), 0.7, key=key).prev_sample
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    whole = outer.set_timesteps(outer.create_state(), 4, eta=0.7)
    assert np.array_equal(whole.rows.update, outer.set_timesteps(state, 4, eta=0.7).rows.update)
    assert not np.array_equal(whole.rows.update, state.rows.update)


@pytest.mark.parametrize("name", FLAX_NAMES)
def test_noising_and_velocities_are_those_of_torch(name: str) -> None:
    inner, outer = both(name)
    state = outer.create_state()
    images, noise = drawn(2)
    times = np.array([3, 977])
    alphas = np.asarray(state.common.alphas_cumprod)
    np.testing.assert_allclose(alphas, inner.alphas_cumprod, rtol=1e-6)
    given = [torch.from_numpy(array) for array in (images, noise, times)]
    trained = scheduler("DDPMScheduler")  # others know the timesteps of a run alone
    found = outer.add_noise(state, images, noise, times)
    np.testing.assert_allclose(found, trained.add_noise(*given), atol=1e-5)
    found = outer.get_velocity(state, images, noise, times)
    np.testing.assert_allclose(found, trained.get_velocity(*given), atol=1e-5)


def test_a_run_may_begin_at_any_of_its_timesteps_and_ends_with_the_last() -> None:
    inner, outer = both("PNDM")
    state = outer.set_timesteps(outer.create_state(), 4)
    x, output = drawn(2)
    assert state.timesteps.tolist() == inner_timesteps(inner)
    begun = outer.step(state, output, state.timesteps[2], jnp.asarray(x)).state
    assert int(begun.row) == 3  # the third of the table, whose timestep is the second's too
    with pytest.raises(InputError, match="is not one of the scheduler's timesteps"):
        outer.step(state, output, 7, jnp.asarray(x))
    for t in state.timesteps:
        state = outer.step(state, output, t, jnp.asarray(x)).state
    with pytest.raises(InputError, match="The last step was taken"):
        outer.step(state, output, state.timesteps[-1], jnp.asarray(x))
    with pytest.raises(InputError, match="The state has no timesteps"):
        outer.step(outer.create_state(), output, 1, jnp.asarray(x))


def inner_timesteps(inner: Any) -> list[int]:
    inner.set_timesteps(4)
    return inner.timesteps.tolist()


def test_a_scheduler_is_written_and_read(tmp_path: Path) -> None:
    outer = flax.FlaxDDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    outer.save_pretrained(tmp_path)
    again, state = flax.FlaxDDIMScheduler.from_pretrained(tmp_path)
    assert again.config.beta_schedule == "scaled_linear" and not again.config.clip_sample
    assert np.array_equal(state.alphas_cumprod, outer.create_state().alphas_cumprod)
    other = flax.FlaxEulerDiscreteScheduler.from_config(outer.config)
    assert type(other._inner) is sfumato.schedulers.EulerDiscreteScheduler
    assert other.config.beta_schedule == "scaled_linear"


def test_what_was_set_later_than_the_making_counts() -> None:
    inner = scheduler("DDIMScheduler")
    inner.register_to_config(timestep_spacing="trailing")
    inner.set_timesteps(4)
    outer = functional(type(inner)).of(inner)
    for one in (outer, functional(type(inner))()):
        one.register_to_config(timestep_spacing="trailing")
        assert one.plan(4).timesteps.tolist() == inner.timesteps.tolist() == [999, 749, 499, 249]


def test_a_sampler_that_chooses_its_steps_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="DPM adaptive chooses its steps as it goes"):
        functional(sfumato.schedulers.DPMAdaptiveScheduler)().plan(10)
