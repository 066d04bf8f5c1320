"""stable-diffusion.cpp through its Python package."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.cpu_peers.job import PROMPT, Job, Runner, Shape
from benchmarks.cpu_peers.watched import as_array, watched


def model_file(job: Job) -> str:
    """The whole model as one file, which is the form that it reads."""
    return str(job.cache / "single" / "model.safetensors")


def prepare(job: Job) -> None:
    """Write that file, unless it is there."""
    from pathlib import Path

    import torch

    from sfumato import StableDiffusionPipeline

    path = Path(model_file(job))
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    pipe = StableDiffusionPipeline.from_pretrained(job.model, torch_dtype=torch.float16)
    pipe.save_single_file(path)


def load(job: Job) -> Runner:
    """The model in the type of the file, with its blocked attention on."""
    import stable_diffusion_cpp

    model = stable_diffusion_cpp.StableDiffusion(
        model_path=model_file(job),
        n_threads=job.threads,
        diffusion_flash_attn=True,
        vae_decode_only=True,
        verbose=False,
    )

    def draw(shape: Shape, mark: Callable[[], None]) -> np.ndarray:
        def after_step(step: int, steps: int, seconds: float) -> None:
            if steps == shape.steps and step > 0:  # it reports tensors and tiles in the same way
                mark()

        made = model.generate_image(
            PROMPT,
            width=shape.size,
            height=shape.size,
            sample_steps=shape.steps,
            batch_count=shape.batch,
            sample_method="euler",
            seed=1,
            progress_callback=after_step,
        )
        return as_array([np.asarray(picture) for picture in made])

    return watched(draw, job.part)
