"""Recipe: a second stage without any condition, on cached latents.

Rombach et al. 2022, equation 2: the squared error of the UNet's answer on noised latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from sfumato.diffusion.schedule import NoiseConfig, alphas_cumprod
from sfumato.errors import ConfigError
from sfumato.models.unet_2d import UNet2DModel
from sfumato.pipelines.ldm import LDMPipeline
from sfumato.schedulers import DDIMScheduler
from sfumato.training.autoencoder import picture_grid
from sfumato.training.data import read_pictures
from sfumato.training.denoising import (
    NOISE_KEYS,
    DenoisingTraining,
    check_channels,
    check_prediction,
    denoising_loss,
    noise_of,
)
from sfumato.training.first_stage import FirstStage, load_first_stage
from sfumato.training.latents import cached_latents
from sfumato.training.run import prepare, read_architecture, run_to_end

#: Pictures on a sample sheet, and the steps in which they are drawn.
SHEET, SHEET_STEPS = 32, 50

#: The paper's sampler, whatever the noise schedule.
_DDIM = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


class UnconditionalRecipe:
    """Cached latents in, the UNet's squared error out.

    Args:
        latents: scaled latents of all examples, float32 ``(n, channels, height, width)``.
    """

    def __init__(
        self, unet: UNet2DModel, latents: Tensor, noise: NoiseConfig, config: DenoisingTraining
    ) -> None:
        check_channels(unet, latents)
        self.unet, self.latents, self.config = unet, latents, config
        self.modules: Mapping[str, nn.Module] = {"unet": unet}
        self.alpha_bar = torch.tensor(alphas_cumprod(noise), dtype=torch.float32)

    def loss(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        def ask(chosen: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
            return self.unet(noisy, timesteps).sample

        return denoising_loss(self.latents, self.alpha_bar, self.config, index, generator, ask)


def train_unconditional(
    data: Path,
    output: Path,
    config: DenoisingTraining,
    *,
    autoencoder: Path | None = None,
    architecture: Path | None = None,
    init: Path | None = None,
    image_size: int = 128,
    sample_every: int = 500,
) -> Path:
    """Train a second stage; returns the folder of the finished pipeline, weights in bfloat16.

    Args:
        data: folder of pictures; captions are not needed.
        autoencoder: folder of the first stage, KL or VQ; with ``init``, the one in there by
            default.
        architecture: folder with ``unconditional.json`` and ``scheduler.json``; the channels and
            the size of the UNet follow from the first stage and ``image_size``.
        init: pipeline folder to start from instead of random weights.

    Raises:
        DatasetError, ConfigError, NumericalError: see their descriptions.
    """
    if autoencoder is None:
        if init is None:
            raise ConfigError("A first stage is needed.", hint="Give --autoencoder or --init.")
        autoencoder = init / "vqvae"
    examples = read_pictures(data)
    first_stage = load_first_stage(autoencoder).eval()
    latents = cached_latents(first_stage, autoencoder, examples, image_size, output)
    torch.manual_seed(config.seed)
    if init:
        pipeline = LDMPipeline.from_pretrained(init, vqvae=first_stage, dtype=torch.float32)
        check_prediction(pipeline.scheduler, config, init)
    else:
        pipeline = new_pipeline(architecture, first_stage, latents, config)
    recipe = UnconditionalRecipe(pipeline.unet, latents, noise_of(pipeline.scheduler), config)
    unet = pipeline.unet.config.to_dict()
    settings = {"architecture": unet, "image_size": image_size, "init": init and str(init)}
    trainer = prepare(recipe, config, output, settings)
    run_to_end(trainer, sample_every, lambda: draw_sheet(pipeline))
    with trainer.averaged():
        pipeline.to(torch.bfloat16)
        pipeline.save_pretrained(output / "model")
    return output / "model"


def new_pipeline(
    architecture: Path | None,
    first_stage: FirstStage,
    latents: Tensor,
    config: DenoisingTraining,
) -> LDMPipeline:
    """A pipeline around a first stage whose UNet holds random weights."""
    said = read_architecture(architecture, "unconditional")
    unet = UNet2DModel.from_config({**said, **sizes_of(latents)})
    return LDMPipeline(first_stage, unet, new_scheduler(architecture, config))


def sizes_of(latents: Tensor) -> dict[str, Any]:
    """The fields of a UNet's configuration that follow from the latents."""
    channels, size = latents.shape[1], list(latents.shape[-2:])
    side = size[0] if size[0] == size[1] else size
    return {"in_channels": channels, "out_channels": channels, "sample_size": side}


def new_scheduler(architecture: Path | None, config: DenoisingTraining) -> DDIMScheduler:
    """The paper's sampler in the noise schedule of ``scheduler.json``."""
    said = read_architecture(architecture, "scheduler")
    noise = {key: said[key] for key in NOISE_KEYS if key in said}
    return DDIMScheduler(**noise, **_DDIM, prediction_type=config.prediction_type)


def draw_sheet(pipeline: LDMPipeline) -> Image.Image:
    """Pictures with seeds from 0 on, on one sheet."""
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(i) for i in range(SHEET)]
    drawn = pipeline(
        SHEET, seeds, num_inference_steps=SHEET_STEPS, output_type="pt", return_dict=False
    )
    pictures: Tensor = drawn[0]
    return picture_grid(pictures * 2 - 1, columns=8)
