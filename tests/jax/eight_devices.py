"""Draws on eight virtual devices in every form there is; prints how far apart the pictures are.

Run by ``test_devices.py`` in a process of its own, since JAX counts its devices once.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sfumato.errors import InputError
from sfumato.jax.devices import make_mesh, replicate, shard
from sfumato.jax.pipeline import FlaxStableDiffusionPipeline
from tests.jax.test_forms import chain


def far(a: Any, b: Any) -> float:
    first, second = np.asarray(a), np.asarray(b)
    return float(np.abs(first.reshape(-1, 16, 16, 3) - second.reshape(-1, 16, 16, 3)).max())


def main(folder: str) -> None:
    assert jax.device_count() == 8
    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(folder)
    ids = pipeline.prepare_inputs([f"a cat of age {age}" for age in range(8)])
    scale = np.linspace(1.5, 8.0, 8, dtype=np.float32)
    noise = np.random.default_rng(0).standard_normal((8, 4, 8, 8)).astype(np.float32)
    key = jax.random.PRNGKey(0)

    def draw(ids: Any, params: Any, key: Any, **options: Any) -> Any:
        return pipeline(ids, params, key, 3, jit=True, **options).images

    one = draw(ids, params, key, guidance_scale=scale, latents=noise)
    found: dict[str, Any] = {}
    pipeline.use_mesh(make_mesh(8))
    images = draw(ids, params, key, guidance_scale=scale, latents=noise)
    found["mesh"], found["devices"] = far(one, images), len(images.sharding.device_set)
    pipeline.use_mesh(make_mesh(8, model=2))
    found["model"] = far(one, draw(ids, params, key, guidance_scale=scale, latents=noise))
    try:
        draw(ids[:3], params, key)
    except InputError as error:
        found["refused"] = str(error)
    pipeline.use_mesh(None)

    mesh = make_mesh(8)
    placed = jax.device_put(ids, NamedSharding(mesh, P("data")))
    found["seed"] = far(draw(ids, params, key), draw(placed, params, key))

    old = (shard(ids), replicate(params), jax.random.split(key, 8))
    images = draw(*old, guidance_scale=shard(scale), latents=shard(noise))
    found["pmap"], found["shape"] = far(one, images), images.shape
    drawn = np.asarray(draw(*old, guidance_scale=5))  # an integer, which upstream could not take
    alone = [
        draw(ids[i : i + 1], params, jax.random.split(key, 8)[i], guidance_scale=5)
        for i in range(8)
    ]
    found["keys"] = far(np.concatenate([np.asarray(a) for a in alone]), drawn)
    found["unsplit"] = far(draw(ids, params, key), draw(shard(ids), replicate(params), key))
    found |= kernels_on_a_mesh()
    print(json.dumps(found))


def kernels_on_a_mesh() -> dict[str, float]:
    """How far kernels with spread arguments are from those without, and what XLA moves."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 16, 16, 48)).astype(np.float32)
    weight = rng.standard_normal((48, 48, 3, 3)).astype(np.float32) / 20
    mesh = make_mesh(8, model=2)
    spread = jax.device_put(x, NamedSharding(mesh, P("data")))
    parts = jax.device_put(weight, NamedSharding(mesh, P("model")))
    compiled = jax.jit(chain).lower(spread, parts).compile()
    gathered = re.findall(r"= f32\[(\S+?)\]\S* all-gather\(", compiled.as_text())
    apart = np.abs(np.asarray(compiled(spread, parts)) - np.asarray(jax.jit(chain)(x, weight)))
    pictures = [shape for shape in gathered if not shape.startswith(("48,48", "96,48"))]
    return {"kernels": float(apart.max()), "gathered": len(pictures)}


if __name__ == "__main__":
    main(sys.argv[1])
