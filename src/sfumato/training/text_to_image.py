"""Recipe: the second stage, a text encoder and a UNet trained together on cached latents.

Rombach et al. 2022, equation 3: the squared error of the UNet's answer on noised latents, with the
encoder's hidden states in its cross-attention. A share of captions is dropped so that the same
network also learns the unconditional answer that classifier-free guidance needs (Ho and Salimans
2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato.diffusion.schedule import NoiseConfig, alphas_cumprod
from sfumato.errors import ConfigError, DatasetError
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.unet import UNet2DConditionModel
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from sfumato.schedulers import DPMSolverMultistepScheduler
from sfumato.text.clip import CLIPTextModel
from sfumato.text.tokenizer import CLIPTokenizer
from sfumato.training.autoencoder import picture_grid
from sfumato.training.captions import CaptionedTraining, Captions, sheet_captions
from sfumato.training.data import Example, read_folder
from sfumato.training.denoising import (
    DenoisingTraining,
    check_channels,
    check_prediction,
    denoising_loss,
    noise_of,
)
from sfumato.training.latents import cached_latents
from sfumato.training.run import prepare, read_architecture, run_to_end


@dataclass(frozen=True, kw_only=True)
class TextToImageTraining(CaptionedTraining, DenoisingTraining):
    """How to train a text-to-image model.

    Attributes:
        freeze_text_encoder: train the UNet alone, as the paper does with a finished encoder.
    """

    freeze_text_encoder: bool = False


class TextToImageRecipe:
    """Cached latents and captions in, the UNet's squared error out.

    Args:
        latents: scaled latents of all examples, float32 ``(n, channels, height, width)``.
        examples: their captions; one of each example's is drawn per step.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        latents: Tensor,
        examples: Sequence[Example],
        noise: NoiseConfig,
        config: TextToImageTraining,
    ) -> None:
        if len(latents) != len(examples):
            raise DatasetError(f"{len(latents)} latents for {len(examples)} pictures.")
        check_channels(unet, latents)
        self.unet, self.text_encoder, self.config = unet, text_encoder, config
        self.modules: dict[str, nn.Module] = {"unet": unet, "text_encoder": text_encoder}
        text_encoder.requires_grad_(not config.freeze_text_encoder)
        self.latents = latents
        self.captions = Captions(tokenizer, examples, config.caption_dropout)
        self.alpha_bar = torch.tensor(alphas_cumprod(noise), dtype=torch.float32)

    @classmethod
    def of_pipeline(
        cls,
        pipeline: StableDiffusionPipeline,
        latents: Tensor,
        examples: Sequence[Example],
        config: TextToImageTraining,
    ) -> Self:
        """The recipe that trains a pipeline's networks with its scheduler's noise."""
        noise = noise_of(pipeline.scheduler)
        networks = (pipeline.unet, pipeline.text_encoder, pipeline.tokenizer)
        return cls(*networks, latents, examples, noise, config)

    def loss(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        def ask(chosen: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
            captions = self.captions.draw(chosen, generator)
            # At these few tokens, plain products train twice as fast on a CPU as the fused kernel.
            with sdpa_kernel(SDPBackend.MATH):
                context = self.text_encoder(captions).last_hidden_state
                return self.unet(noisy, timesteps, encoder_hidden_states=context).sample

        return denoising_loss(self.latents, self.alpha_bar, self.config, index, generator, ask)


def train_text_to_image(
    data: Path,
    output: Path,
    config: TextToImageTraining,
    *,
    autoencoder: Path | None = None,
    architecture: Path | None = None,
    text_encoder: Path | None = None,
    init: Path | None = None,
    image_size: int = 128,
    sample_every: int = 500,
) -> Path:
    """Train a second stage; returns the folder of the finished pipeline, weights in bfloat16.

    Args:
        autoencoder: folder of the first stage; with ``init``, the one in there by default.
        architecture: folder with ``unet.json``, ``text_encoder.json`` and ``scheduler.json``.
        text_encoder: folder of one trained by itself (``train_text_encoder``) to start from.
        init: pipeline folder to start from instead of random weights.

    Raises:
        DatasetError, ConfigError, NumericalError: see their descriptions.
    """
    if autoencoder is None:
        if init is None:
            raise ConfigError("A first stage is needed.", hint="Give --autoencoder or --init.")
        autoencoder = init / "vae"
    examples = read_folder(data)
    vae = AutoencoderKL.from_pretrained(autoencoder, dtype=torch.float32).eval()
    torch.manual_seed(config.seed)
    pipeline = continued_pipeline(init, vae) if init else new_pipeline(architecture, vae, config)
    if text_encoder:
        pipeline.text_encoder = CLIPTextModel.from_pretrained(text_encoder, dtype=torch.float32)
    check_prediction(pipeline.scheduler, config, init)
    latents = cached_latents(vae, autoencoder, examples, image_size, output)
    recipe = TextToImageRecipe.of_pipeline(pipeline, latents, examples, config)
    networks = {"unet": recipe.unet, "text_encoder": recipe.text_encoder}
    parts = {name: network.config.to_dict() for name, network in networks.items()}
    settings = {"architecture": parts, "image_size": image_size, "init": init and str(init)}
    if text_encoder:
        settings["text_encoder"] = str(text_encoder)
    trainer = prepare(recipe, config, output, settings)
    prompts = sheet_captions(examples)
    run_to_end(trainer, sample_every, lambda: draw_sheet(pipeline, prompts))
    with trainer.averaged():
        pipeline.to(torch.bfloat16)
        pipeline.save_pretrained(output / "model")
    return output / "model"


def new_pipeline(
    architecture: Path | None, vae: AutoencoderKL, config: TextToImageTraining
) -> StableDiffusionPipeline:
    """A pipeline around ``vae`` whose other networks hold random weights."""
    parts = {n: read_architecture(architecture, n) for n in ("unet", "text_encoder", "scheduler")}
    unet = UNet2DConditionModel.from_config(parts["unet"])
    text_encoder = CLIPTextModel.from_config(parts["text_encoder"])
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer(model_max_length=text_encoder.config.max_position_embeddings),
        unet=unet,
        scheduler=DPMSolverMultistepScheduler.from_config(
            parts["scheduler"], prediction_type=config.prediction_type
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def continued_pipeline(init: Path, vae: AutoencoderKL) -> StableDiffusionPipeline:
    """The pipeline in ``init``, in float32, with ``vae`` as its first stage."""
    return StableDiffusionPipeline.from_pretrained(
        init, vae=vae, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )


def draw_sheet(pipeline: StableDiffusionPipeline, prompts: Sequence[str]) -> Image.Image:
    """One picture for each prompt, seeds by position, on one sheet."""
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    drawn = pipeline(
        list(prompts),
        num_inference_steps=20,
        guidance_scale=4.0,
        generator=seeds,
        output_type="pt",
        return_dict=False,
    )
    pictures: Tensor = drawn[0]
    return picture_grid(pictures * 2 - 1, columns=8)
