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

from sfumato.config import check_choice
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
from sfumato.training.data import Example, batch_indices, read_folder
from sfumato.training.latents import cached_latents
from sfumato.training.loop import DTYPES
from sfumato.training.losses import (
    PREDICTIONS,
    add_noise,
    diffusion_target,
    min_snr_weight,
    stratified_timesteps,
    weighted_mse,
)
from sfumato.training.run import prepare, read_architecture, run_to_end

#: Fields of a scheduler that say how noise is added in training.
NOISE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")


@dataclass(frozen=True, kw_only=True)
class TextToImageTraining(CaptionedTraining):
    """How to train a text-to-image model.

    Attributes:
        prediction_type: what the UNet answers: ``epsilon``, ``v_prediction`` or ``sample``.
        snr_gamma: cap of the min-SNR weighting; None weighs all noise levels alike.
        timestep_shift: above 1, high noise levels are trained on more often, see
            `stratified_timesteps`.
        freeze_text_encoder: train the UNet alone, as the paper does with a finished encoder.
    """

    prediction_type: str = "v_prediction"
    snr_gamma: float | None = 5.0
    timestep_shift: float = 1.0
    freeze_text_encoder: bool = False

    def validate(self) -> None:
        super().validate()
        check_choice("prediction_type", self.prediction_type, PREDICTIONS)
        if self.snr_gamma is not None and self.snr_gamma <= 0:
            raise ConfigError(f"`snr_gamma` has to be positive but is {self.snr_gamma}.")
        if not 0 < self.timestep_shift <= 100:
            raise ConfigError(
                f"`timestep_shift` has to lie in (0, 100] but is {self.timestep_shift}."
            )


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
        if latents.shape[1] != unet.config.in_channels:
            raise ConfigError(
                f"The autoencoder's latents have {latents.shape[1]} channels, but the UNet takes "
                f"{unet.config.in_channels}.",
                hint="Set `in_channels` and `out_channels` in unet.json.",
            )
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
        noise = NoiseConfig(**{key: pipeline.scheduler.config[key] for key in NOISE_KEYS})
        networks = (pipeline.unet, pipeline.text_encoder, pipeline.tokenizer)
        return cls(*networks, latents, examples, noise, config)

    def loss(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        dtype = DTYPES[config.dtype]
        chosen = torch.from_numpy(
            batch_indices(len(self.latents), config.batch_size, index, config.seed)
        )
        latents = self.latents[chosen]
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = stratified_timesteps(
            len(chosen), len(self.alpha_bar), generator, config.timestep_shift
        )
        alpha_bar = self.alpha_bar[timesteps]
        captions = self.captions.draw(chosen, generator)
        noisy = add_noise(latents, noise, alpha_bar).to(dtype)
        # At these few tokens, plain products train twice as fast on a CPU as the fused kernel.
        with sdpa_kernel(SDPBackend.MATH):
            context = self.text_encoder(captions).last_hidden_state
            answer = self.unet(noisy, timesteps, encoder_hidden_states=context).sample
        target = diffusion_target(latents, noise, alpha_bar, config.prediction_type)
        weight = min_snr_weight(alpha_bar, config.prediction_type, config.snr_gamma)
        return {
            "loss": weighted_mse(answer, target, weight),
            "mse": weighted_mse(answer.detach(), target, torch.ones_like(weight)),
        }


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
    trained_for = pipeline.scheduler.config.prediction_type
    if trained_for != config.prediction_type:
        raise ConfigError(
            f"'{init}' was trained for {trained_for}, not {config.prediction_type}.",
            hint=f"Give --prediction-type {trained_for}.",
        )
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
