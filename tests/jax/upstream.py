"""Compares the JAX pipeline with diffusers' own Flax pipeline, which runs in an old environment.

    python -m venv old
    old/bin/pip install diffusers==0.35.2 transformers==4.46.3 flax==0.8.5 jax==0.4.30 \\
        jaxlib==0.4.30 "numpy<2" "scipy<1.13"
    python -m tests.jax.upstream --python old/bin/python

Random weights, written here and read there; the same latents and outputs of networks. Prints how
far the results are apart, relative to the largest number, and fails where that is more than it was.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sfumato
from sfumato.diffusion.plan import Plan
from sfumato.jax.pipeline import FlaxStableDiffusionPipeline
from tests.pipelines.tiny import tiny_pipeline, tiny_unet, tiny_vae

#: Those of upstream's that draw no noise and that its pipeline can use: its LMS takes the time for
#: the number of the step, and its Euler does not find most of its own times, which are no whole
#: numbers, when they are rounded.
SCHEDULERS = ("DDIM", "PNDM", "DPMSolverMultistep")
STEPS = 4
#: diffusers' Flax networks have norms of 32 groups whatever their configuration says.
GROUPS: dict[str, Any] = {"norm_num_groups": 32, "block_out_channels": (32, 64)}
#: Upstream's DPM-Solver ends at the first timestep rather than at no noise.
SETTINGS = {"FlaxDPMSolverMultistepScheduler": {"final_sigmas_type": "sigma_min"}}
#: The largest distance of what both compute alike.
BOUND = 1e-4


def write_model(folder: Path) -> None:
    """A tiny pipeline that both can read."""
    pipe = tiny_pipeline(unet=tiny_unet(**GROUPS), vae=tiny_vae(**GROUPS))
    pipe.save_pretrained(folder)


def inputs() -> dict[str, Any]:
    """What both are given."""
    rng = np.random.default_rng(0)

    def random(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "steps": np.array(STEPS),
        "schedulers": np.array([f"Flax{name}Scheduler" for name in SCHEDULERS]),
        "sample": random(2, 4, 8, 8),
        "timesteps": np.array([17, 801], np.int32),
        "context": random(2, 77, 32),
        "pictures": random(2, 3, 16, 16).clip(-1, 1),
        "outputs": random(STEPS + 10, 2, 4, 8, 8),
    }


def ours(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The same by sfumato, under the names of ``upstream_reference``."""
    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(folder)
    unet: Any = pipeline.unet.apply(
        params["unet"], given["sample"], given["timesteps"], given["context"]
    )
    encoded: Any = pipeline.vae.encode(params["vae"], given["pictures"])
    decoded: Any = pipeline.vae.decode(params["vae"], given["sample"])
    text: Any = pipeline.text_encoder.apply(params["text_encoder"], given["ids"])
    found = {
        "text": text.last_hidden_state,
        "unet": unet.sample,
        "decode": decoded.sample,
        "encode": encoded.latent_dist.mean,
    }
    for name in given["schedulers"]:
        config = dict(pipeline.scheduler.config) | SETTINGS.get(str(name), {})
        scheduler = getattr(sfumato, name).from_config(config)
        found[f"sampler {name}"] = samples(scheduler, given)
        if name == "FlaxPNDMScheduler":
            found[f"picture {name}, whole"] = picture(pipeline, scheduler, params, given)
            scheduler = WithoutLastRow.from_config(config)
        found[f"picture {name}"] = picture(pipeline, scheduler, params, given)
    return {name: np.asarray(array) for name, array in found.items()}


class WithoutLastRow(sfumato.FlaxPNDMScheduler):
    """PNDM as upstream's pipeline had it, which made one call of the network too few."""

    def plan(self, num_inference_steps: int, start: int = 0) -> Plan:
        plan = super().plan(num_inference_steps, start)
        names = ("timesteps", "input_scale", "denoised", "base", "update", "draws")
        return replace(plan, **{name: getattr(plan, name)[:-1] for name in names})


def samples(scheduler: Any, given: dict[str, Any]) -> Any:
    """Samples step by step."""
    state = scheduler.create_state()
    state = scheduler.set_timesteps(state, STEPS, shape=given["sample"].shape)
    x, found = given["sample"] * state.init_noise_sigma, []
    for step, t in enumerate(np.asarray(state.timesteps)):
        x, state = scheduler.step(state, given["outputs"][step], t, x).to_tuple()
        found.append(np.asarray(x))
    return np.stack(found)


def picture(pipeline: Any, scheduler: Any, params: Any, given: dict[str, Any]) -> Any:
    """One picture."""
    pipeline.scheduler = scheduler
    noise = given["sample"][:1]
    key = jax.random.PRNGKey(0)
    return pipeline(given["ids"][:1], params, key, STEPS, latents=noise, jit=True).images


def distance(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest number; infinite for other shapes."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare with diffusers' Flax pipeline.")
    parser.add_argument("--python", type=Path, required=True, help="of the old environment")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_model(folder / "model")
        pipeline, _ = FlaxStableDiffusionPipeline.from_pretrained(folder / "model")
        given = inputs() | {"ids": pipeline.prepare_inputs(["a red apple", "two cats"])}
        np.savez(folder / "inputs.npz", allow_pickle=False, **given)
        script = Path(__file__).with_name("upstream_reference.py")
        names = (script, folder / "model", folder / "inputs.npz", folder / "outputs.npz")
        subprocess.run([options.python, *names], check=True)
        expected = dict(np.load(folder / "outputs.npz"))
        print(", ".join(expected.pop("versions")))
        found = ours(folder / "model", given)
    failed = False
    for name, array in expected.items():
        short, form = (*name.split(", "), "")[:2]
        apart = distance(found[short], array)
        print(f"{name}: {apart:.1e}")
        failed |= apart > BOUND and form != "as it was"
        if (whole := found.get(f"{short}, whole")) is not None:
            print(f"{name}, with the last step here: {distance(whole, array):.1e}")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
