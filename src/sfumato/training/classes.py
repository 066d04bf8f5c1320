"""Recipe: a second stage that draws classes, on cached latents.

Rombach et al. 2022, equation 3, with a table of classes as the network of the condition. A share of
the pictures is shown as of no class, which is what guidance leads away from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from sfumato.conditioners.classes import ClassEmbedder
from sfumato.diffusion.schedule import NoiseConfig, alphas_cumprod
from sfumato.errors import ConfigError
from sfumato.models.unet import UNet2DConditionModel
from sfumato.pipelines.latent_diffusion import LatentDiffusionPipeline
from sfumato.training.autoencoder import picture_grid
from sfumato.training.data import Example, read_classes
from sfumato.training.denoising import (
    DenoisingTraining,
    check_channels,
    check_prediction,
    denoising_loss,
    noise_of,
)
from sfumato.training.first_stage import FirstStage, load_first_stage
from sfumato.training.latents import cached_latents
from sfumato.training.run import prepare, read_architecture, run_to_end
from sfumato.training.unconditional import SHEET, SHEET_STEPS, new_scheduler, sizes_of

#: How sample sheets are guided.
_SCALE = 3.0


@dataclass(frozen=True, kw_only=True)
class ClassTraining(DenoisingTraining):
    """How to train a model of classes.

    Attributes:
        class_dropout: share of pictures shown as of no class.
    """

    class_dropout: float = 0.1

    def validate(self) -> None:
        super().validate()
        if not 0 <= self.class_dropout < 1:
            raise ConfigError(f"`class_dropout` has to lie in [0, 1) but is {self.class_dropout}.")


class ClassRecipe:
    """Cached latents and class numbers in, the UNet's squared error out.

    Args:
        latents: scaled latents of all examples, float32 ``(n, channels, height, width)``.
        labels: their class numbers, ``(n,)``.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        table: ClassEmbedder,
        latents: Tensor,
        labels: Tensor,
        noise: NoiseConfig,
        config: ClassTraining,
    ) -> None:
        check_channels(unet, latents)
        self.unet, self.table, self.config = unet, table, config
        self.latents, self.labels = latents, labels
        self.modules: Mapping[str, nn.Module] = {"unet": unet, "conditioner": table}
        self.alpha_bar = torch.tensor(alphas_cumprod(noise), dtype=torch.float32)
        self.nothing = table.unconditional_class

    def loss(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        def ask(chosen: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
            labels = self.labels[chosen]
            dropped = torch.rand(len(chosen), generator=generator) < self.config.class_dropout
            if self.nothing is not None:
                labels = labels.masked_fill(dropped, self.nothing)
            return self.unet(noisy, timesteps, encoder_hidden_states=self.table(labels)).sample

        return denoising_loss(self.latents, self.alpha_bar, self.config, index, generator, ask)


def train_classes(
    data: Path,
    output: Path,
    config: ClassTraining,
    *,
    autoencoder: Path | None = None,
    architecture: Path | None = None,
    init: Path | None = None,
    image_size: int = 128,
    sample_every: int = 500,
) -> Path:
    """Train a second stage; returns the folder of the finished pipeline, weights in bfloat16.

    Args:
        data: a folder with a folder of pictures for each class; or one with ``metadata.jsonl``,
            whose first captions are names of classes.
        autoencoder: folder of the first stage, KL or VQ; with ``init``, the one in there by
            default.
        architecture: folder with ``unet.json`` and ``scheduler.json``; the channels and the size of
            the UNet follow from the first stage and ``image_size``.
        init: pipeline folder to start from instead of random weights, of the same classes.

    Raises:
        DatasetError, ConfigError, NumericalError: see their descriptions.
    """
    if autoencoder is None:
        if init is None:
            raise ConfigError("A first stage is needed.", hint="Give --autoencoder or --init.")
        autoencoder = init / "vae"
    examples = read_classes(data)
    names = sorted({example.captions[0] for example in examples})
    first_stage = load_first_stage(autoencoder).eval()
    latents = cached_latents(first_stage, autoencoder, examples, image_size, output)
    torch.manual_seed(config.seed)
    if init:
        pipeline = LatentDiffusionPipeline.from_pretrained(
            init, vae=first_stage, dtype=torch.float32
        )
        check_prediction(pipeline.scheduler, config, init)
    else:
        pipeline = new_pipeline(architecture, first_stage, latents, names, config)
    table = pipeline.conditioner
    labels = torch.tensor(_numbers(table, examples, names))
    noise = noise_of(pipeline.scheduler)
    recipe = ClassRecipe(pipeline.unet, table, latents, labels, noise, config)
    parts = {"unet": pipeline.unet.config.to_dict(), "conditioner": table.config.to_dict()}
    settings = {"architecture": parts, "image_size": image_size, "init": init and str(init)}
    trainer = prepare(recipe, config, output, settings)
    run_to_end(trainer, sample_every, lambda: draw_sheet(pipeline, len(names)))
    with trainer.averaged():
        pipeline.to(torch.bfloat16)
        pipeline.save_pretrained(output / "model")
    return output / "model"


def new_pipeline(
    architecture: Path | None,
    first_stage: FirstStage,
    latents: Tensor,
    names: Sequence[str],
    config: ClassTraining,
) -> LatentDiffusionPipeline:
    """A pipeline around a first stage whose other networks hold random weights."""
    said = {
        name: value
        for name, value in read_architecture(architecture, "unet").items()
        if not name.startswith("addition_")  # which is about texts
    }
    unet = UNet2DConditionModel.from_config({**said, **sizes_of(latents)})
    width: Any = unet.config.cross_attention_dim
    table = ClassEmbedder(n_classes=len(names) + 1, embed_dim=width, class_names=tuple(names))
    scheduler = new_scheduler(architecture, config)
    return LatentDiffusionPipeline(first_stage, unet, scheduler, conditioner=table)


def _numbers(table: Any, examples: Sequence[Example], names: Sequence[str]) -> list[int]:
    """The class number of each example."""
    known: tuple[str, ...] = getattr(getattr(table, "config", None), "class_names", ())
    if strange := sorted(set(names) - set(known)):
        raise ConfigError(
            f"The model does not know the class {strange[0][:80]!r}"
            f"{f' and {len(strange) - 1} others' if len(strange) > 1 else ''}.",
            hint="--init needs a model that was trained here on the same classes.",
        )
    place = {name: number for number, name in enumerate(known)}
    return [place[example.captions[0]] for example in examples]


def draw_sheet(pipeline: LatentDiffusionPipeline, classes: int) -> Image.Image:
    """The classes in turn, with seeds from 0 on, on one sheet."""
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(i) for i in range(SHEET)]
    drawn: Any = pipeline(
        [number % classes for number in range(SHEET)],
        guidance_scale=_SCALE,
        num_inference_steps=SHEET_STEPS,
        generator=seeds,
        output_type="pt",
        return_dict=False,
    )
    pictures: Tensor = drawn[0]
    return picture_grid(pictures * 2 - 1, columns=8)
