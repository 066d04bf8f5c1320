"""sfumato's networks in JAX, each compiled for the shape that it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu_peers.job import Job, Runner, Sample, Shape


def load(job: Job, dtype: str) -> Runner:
    """One network; the first call compiles it, which counts as its start."""
    import jax
    import jax.numpy as jnp

    from sfumato.jax.models import FlaxAutoencoderKL, FlaxCLIPTextModel, FlaxUNet2DConditionModel

    classes: dict[str, Any] = {
        "unet": ("unet", FlaxUNet2DConditionModel),
        "vae": ("vae", FlaxAutoencoderKL),
        "text": ("text_encoder", FlaxCLIPTextModel),
    }
    folder, model_class = classes[job.part]
    model, params = model_class.from_pretrained(Path(job.model), dtype, subfolder=folder)
    params = model.to_bf16(params) if dtype == "bfloat16" else model.to_fp32(params)
    ask: Callable[..., Any] = {
        "unet": lambda p, sample, timestep, encoder_hidden_states: (
            model.apply(p, sample, timestep, encoder_hidden_states).sample
        ),
        "vae": lambda p, latent_sample: model.decode(p, latent_sample).sample,
        "text": lambda p, input_ids: model.apply(p, input_ids).last_hidden_state,
    }[job.part]
    compiled = jax.jit(ask)

    def call(shape: Shape) -> Sample:
        feed = {name: jnp.asarray(array) for name, array in job.inputs(shape).items()}
        return Sample(np.asarray(compiled(params, **feed), np.float32))

    return call
