"""The compiled loop over a sampler's table is the loop of torch, for every table there is."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from sfumato import KDiffusionScheduler
from sfumato.diffusion.denoise import denoise
from sfumato.diffusion.guidance import ClassifierFree
from sfumato.diffusion.samplers.named import NAMED
from tests.jax.noise import Bank
from tests.jax.test_pipeline import SAMPLERS, scheduler
from tests.pipelines.tiny import SD_SCHEDULER

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from sfumato.jax.sampling import guided, rows_of, sample  # noqa: E402
from sfumato.jax.schedulers import functional  # noqa: E402

KEY = jax.random.PRNGKey(4)
SHAPE = (2, 4, 3, 5)
STEPS, SCALE = 6, 1.3


def network(of: Any, x: Any, t: Any, place: Any) -> Any:
    """Some answer that depends on everything; ``of`` is the library."""
    return of.tanh(0.8 * x + t / 700 + place) + 0.3 * of.sin(of.roll(x, 1, -1))


PLACES = np.array([-0.4, -0.1, 0.5, 0.2], np.float32).reshape(4, 1, 1, 1)


@partial(jax.jit, static_argnames=("limit", "tells_negative"))
def drawn(x: Any, rows: Any, limit: Any, tells_negative: bool) -> Any:
    def predict(x: Any, t: Any) -> Any:
        return network(jnp, x, t, PLACES)

    def noise(number: Any) -> Any:
        return jax.random.normal(jax.random.fold_in(KEY, number), SHAPE)

    asked = guided(predict, jnp.full(SHAPE[0], SCALE), True, tells_negative)
    return sample(asked, x, rows, noise, limit)


@pytest.mark.parametrize("name", [*SAMPLERS, *sorted(NAMED)])
def test_a_compiled_loop_takes_the_steps_of_torch(name: str) -> None:
    inner = (
        scheduler(name) if name in SAMPLERS else KDiffusionScheduler(**SD_SCHEDULER, sampler=name)
    )
    plan = functional(type(inner)).from_config(inner.config).plan(STEPS)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32) * plan.init_sigma
    wanted = plan.wants_negative
    found, broken = drawn(jnp.asarray(x, jnp.float32), rows_of(plan), plan.limit, wanted)
    *_, last = denoise(
        lambda x, t, place: network(torch, x, t, place),
        torch.from_numpy(np.float32(x)),
        torch.from_numpy(PLACES),
        plan,
        ClassifierFree(SCALE, tells_negative=wanted),
        Bank(KEY, plan, SHAPE),
    )
    assert np.abs(np.asarray(found) - last.x.numpy()).max() < 1e-4 * float(last.x.abs().max())
    assert broken.tolist() == [len(plan)] * SHAPE[0]
