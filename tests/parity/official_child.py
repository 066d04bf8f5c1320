"""Loads one checkpoint with one library, without any network, and saves what it gives.

python -m tests.parity.official_child sfumato FILE CONFIGS OUTPUT [average]
"""

from __future__ import annotations

import inspect
import resource
import sys
import time
from importlib import import_module
from typing import Any

import torch

from tests.parity.single_file_child import PROMPTS, forbid_sockets, latents, network_outputs

#: What a UNet is for that takes more channels than the latents have.
TASKS = {
    7: "StableDiffusionUpscalePipeline",
    8: "StableDiffusionInstructPix2PixPipeline",
    9: "StableDiffusionInpaintPipeline",
}


def load(library: str, file: str, configs: str, average: bool) -> Any:
    """The pipeline in float32; sfumato is given the file alone."""
    if library == "sfumato":
        from sfumato import StableDiffusionPipeline

        return StableDiffusionPipeline.from_single_file(file, extract_ema=average)
    import diffusers

    return diffusers.StableDiffusionPipeline.from_single_file(
        file, config=configs, local_files_only=True, torch_dtype=torch.float32
    )


def with_a_picture(library: str, file: str, pipe: Any) -> torch.Tensor:
    """What the task's own pipeline draws of a picture; sfumato's is loaded from the file again."""
    made = getattr(import_module(library), TASKS[pipe.unet.config.in_channels])
    if library == "sfumato":
        task = made.from_single_file(file)
    else:
        taken = inspect.signature(made).parameters
        parts = {name: part for name, part in pipe.components.items() if name in taken}
        if "low_res_scheduler" in taken:
            scheduler = import_module(library).DDPMScheduler
            parts["low_res_scheduler"] = scheduler(beta_schedule="scaled_linear", beta_end=0.02)
        task = (
            made(**parts, requires_safety_checker=False)
            if "image_encoder" in taken
            else made(**parts)
        )
    task.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(3)
    options: dict[str, Any] = {"image": torch.rand(len(PROMPTS), 3, 64, 64, generator=noise)}
    if made.__name__ == "StableDiffusionInpaintPipeline":
        mask = (torch.rand(len(PROMPTS), 1, 64, 64, generator=noise) > 0.5).float()
        options |= {"mask_image": mask, "height": 64, "width": 64}
    if made.__name__ == "StableDiffusionUpscalePipeline":
        options["image"] = options["image"][..., :16, :16]
    generator = torch.Generator().manual_seed(7)
    drawn = task(
        PROMPTS, **options, num_inference_steps=3, generator=generator, output_type="latent"
    )
    return drawn.images


def main(library: str, file: str, configs: str, output: str, average: bool = False) -> None:
    """Load, compute, save."""
    sys.addaudithook(forbid_sockets)
    started = time.process_time()
    pipe = load(library, file, configs, average)
    results: dict[str, Any] = {"seconds": time.process_time() - started}
    results["prediction_type"] = pipe.scheduler.config.prediction_type
    results["scheduler"] = type(pipe.scheduler).__name__
    results |= network_outputs(pipe)
    plain = pipe.unet.config.in_channels == 4
    results["drawn"] = latents(pipe) if plain else with_a_picture(library, file, pipe)
    results["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.save(results, output)


if __name__ == "__main__":
    main(*sys.argv[1:5], average="average" in sys.argv[5:])
