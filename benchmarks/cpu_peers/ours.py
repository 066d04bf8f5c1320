"""sfumato, as `from_pretrained` sets it up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.cpu_peers.job import PROMPT, Job, Runner, Sample, Shape


def load(
    job: Job, dtype: str, stored: Sequence[str] = (), engine: str | None = None, **options: Any
) -> Runner:
    """A pipeline of ours, or one of its networks.

    Args:
        job: what to load.
        dtype: what to compute in.
        engine: what computes in torch's place.
        stored: networks whose weights stay as they are stored, for an engine that converts them.
        options: of `from_pretrained`.
    """
    from sfumato import StableDiffusionPipeline

    torch.set_num_threads(job.threads)
    types = {"default": getattr(torch, dtype), **dict.fromkeys(stored, "auto")}
    pipe = StableDiffusionPipeline.from_pretrained(
        job.model, torch_dtype=types, safety_checker=None, **options
    )
    if engine == "compile":
        pipe.use_engine(engine, folder=job.cache / "compiled")
    elif engine is not None:
        pipe.use_engine(engine, dtype=dtype)
    return runner(pipe, job, getattr(torch, dtype))


def runner(pipe: Any, job: Job, dtype: torch.dtype) -> Runner:
    """How to take a step with a pipeline of diffusers' interface."""
    pipe.set_progress_bar_config(disable=True)
    if job.part == "image":
        return lambda shape: draw(pipe, shape)
    inputs: dict[Shape, dict[str, torch.Tensor]] = {}

    @torch.inference_mode()
    def call(shape: Shape) -> Sample:
        if shape not in inputs:
            inputs[shape] = tensors(job, shape, dtype)
        feed = inputs[shape]
        if job.part == "unet":
            result = pipe.unet(**feed, return_dict=False)[0]
        elif job.part == "vae":
            result = pipe.vae.decode(feed["latent_sample"], return_dict=False)[0]
        else:
            result = pipe.text_encoder(feed["input_ids"])[0]
        return Sample(result.float().numpy())

    return call


def tensors(job: Job, shape: Shape, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The inputs of the part; floating point ones in the network's type."""
    made = {name: torch.from_numpy(array) for name, array in job.inputs(shape).items()}
    if "timestep" in made:
        made["timestep"] = made["timestep"][0]
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in made.items()}


def draw(pipe: Any, shape: Shape) -> Sample:
    """A whole picture, ``(batch, size, size, 3)`` in 0..1."""
    pictures = pipe(
        PROMPT,
        height=shape.size,
        width=shape.size,
        num_inference_steps=shape.steps,
        num_images_per_prompt=shape.batch,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).images
    return Sample(np.asarray(pictures, np.float32))
