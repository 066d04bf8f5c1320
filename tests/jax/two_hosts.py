"""One of several processes that draw together, each with two virtual devices; see ``test_hosts``.

    python -m tests.jax.two_hosts FOLDER OUT.npz COORDINATOR PROCESSES NUMBER

Writes the pictures of each form of call, as this process has them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sfumato import CLIPImageProcessor
from sfumato.jax.devices import gather, make_mesh, replicate, shard
from sfumato.jax.pipeline import FlaxStableDiffusionPipeline

PROMPTS = [f"a cat of age {age}" for age in range(4)]


class Checker:
    """Objects to the second picture, whatever it shows."""

    def check(self, images: Any, processor: Any, params: Any) -> tuple[Any, list[bool]]:
        flags = [number == 1 for number in range(len(images))]
        return np.where(np.array(flags)[:, None, None, None], 0.0, images), flags


def main(folder: str, out: str, coordinator: str, processes: str, number: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, int(processes), int(number))
    pipeline: Any
    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(folder)
    ids = pipeline.prepare_inputs(PROMPTS)
    key = jax.random.PRNGKey(0)

    def draw(ids: Any = ids, params: Any = params, key: Any = key, **options: Any) -> Any:
        return gather(pipeline(ids, params, key, 2, **options).images)

    found = {"devices": np.array([jax.device_count(), jax.local_device_count()])}
    pipeline.use_mesh(make_mesh())
    found["compiled"] = draw(jit=True)
    pipeline.use_mesh(make_mesh(model=2))
    found["spread parameters"] = draw(jit=True)
    pipeline.safety_checker, pipeline.feature_extractor = Checker(), CLIPImageProcessor()
    params["safety_checker"] = {}
    found["checked"] = draw(jit=True)
    pipeline.safety_checker = None
    # As with pmap, each process draws its own prompts on its own devices.
    mine = ids[2 * jax.process_index() :][:2]
    pipeline.use_mesh(None)
    keys = jax.random.split(key, 2)
    own = pipeline(shard(mine, 2), replicate(params, 2), keys, 2, jit=True).images
    found["own"] = np.asarray(own).reshape(2, *own.shape[2:])
    np.savez(Path(out), allow_pickle=False, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
