"""Recipe: the first stage, KL or VQ (Rombach et al. 2022, section 3.1 and appendix G).

The loss is the mean absolute error of the picture, the same for its edges at three scales (drawings
are edges: without this term they blur) and for its opponent colours at a coarse scale, and a term
that bounds the latents. For Gaussian ones that is a small Kullback-Leibler divergence, which leaves
them a little noisy and makes the decoder forgiving; with a codebook, what draws latents and
codebook together. Left to itself a small model spends all its latent channels on shapes first and
draws frogs grey for a long time; so the last two channels are drawn towards the opponent colours
of their squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sfumato.config import check_int
from sfumato.errors import ConfigError
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.vq_autoencoder import VQModel
from sfumato.training.data import Example, batch_indices, load_picture, read_pictures
from sfumato.training.first_stage import (
    FirstStage,
    fill_codebook,
    freeze_encoder,
    latents_of,
    load_first_stage,
    restore,
)
from sfumato.training.loop import DTYPES, TrainConfig
from sfumato.training.run import prepare, read_architecture, run_to_end

#: Standard deviation of unanchored latents over that of opponent colours, roughly.
ANCHOR_SCALE = 4.0


@dataclass(frozen=True, kw_only=True)
class FirstStageTraining(TrainConfig):
    """How to train a first stage of either kind.

    Attributes:
        image_size: side of a whole picture, in pixels.
        crop_size: side of the squares that are trained on; smaller is faster.
        edge_weight: weight of the edge terms beside the pixel term.
        colour_weight: weight of the colour term.
        anchor_weight: weight of the term that ties the last two latent channels to colours.
        freeze_encoder: train the decoder alone, for latents that are already in use.
    """

    image_size: int = 128
    crop_size: int = 64
    edge_weight: float = 1.0
    colour_weight: float = 1.0
    anchor_weight: float = 0.1
    freeze_encoder: bool = False

    @property
    def bound_weight(self) -> float:
        """Weight of the term that keeps latents in bounds; see `Restored`."""
        raise NotImplementedError

    def validate(self) -> None:
        super().validate()
        check_int("image_size", self.image_size, 8, 4096)
        check_int("crop_size", self.crop_size, 8, self.image_size)
        for name in ("edge_weight", "colour_weight", "anchor_weight", "kl_weight", "commit_weight"):
            if not getattr(self, name, 0) >= 0:
                raise ConfigError(f"`{name}` cannot be negative but is {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining(FirstStageTraining):
    """How to train a first stage with Gaussian latents.

    Attributes:
        kl_weight: weight of the KL term, which is averaged over latent values.
    """

    kl_weight: float = 1e-3

    @property
    def bound_weight(self) -> float:
        return self.kl_weight


@dataclass(frozen=True, kw_only=True)
class CodebookTraining(FirstStageTraining):
    """How to train a first stage with a codebook.

    Attributes:
        codebook_size: vectors in the codebook.
        commit_weight: weight of the term that draws latents and codebook together.
    """

    codebook_size: int = 1024
    commit_weight: float = 1.0

    def validate(self) -> None:
        super().validate()
        check_int("codebook_size", self.codebook_size, 2, 2**20)

    @property
    def bound_weight(self) -> float:
        return self.commit_weight


class AutoencoderRecipe:
    """Random crops in, pictures back."""

    def __init__(
        self, model: FirstStage, examples: Sequence[Example], config: FirstStageTraining
    ) -> None:
        factor = 2 ** (len(model.config.block_out_channels) - 1)
        if config.crop_size % factor:
            raise ConfigError(
                f"`crop_size` has to be a multiple of {factor} but is {config.crop_size}."
            )
        self.model, self.examples, self.config = model, examples, config
        self.modules: Mapping[str, nn.Module] = {"vae": model}
        if config.freeze_encoder:
            freeze_encoder(model)

    def loss(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        picture = self._crops(index, generator).to(DTYPES[self.config.dtype])
        made = restore(self.model, picture, generator)
        picture, restored = picture.float(), made.picture.float()
        pixel = F.l1_loss(restored, picture)
        edge, colour = edge_loss(restored, picture), colour_loss(restored, picture)
        loss = pixel + self.config.edge_weight * edge + self.config.colour_weight * colour
        anchor = anchor_loss(made.latents.float(), picture)
        if not self.config.freeze_encoder:
            bound = self.config.bound_weight * made.bound
            loss = loss + bound + self.config.anchor_weight * anchor
        terms = {"pixel": pixel, "edge": edge, "colour": colour, "anchor": anchor}
        if made.used is None:
            return {"loss": loss, **terms, "kl": made.bound}
        used = torch.tensor(made.used)
        return {"loss": loss, **terms, "commit": made.bound, "codebook used": used}

    def _crops(self, index: int, generator: torch.Generator) -> Tensor:
        """This step's batch: float32 ``(batch, 3, crop, crop)``, half of it mirrored."""
        config = self.config
        chosen = batch_indices(len(self.examples), config.batch_size, index, config.seed)
        room = config.image_size - config.crop_size + 1
        corners = torch.randint(room, (len(chosen), 2), generator=generator).tolist()
        mirrored = torch.rand(len(chosen), generator=generator) < 0.5
        crops = []
        for example, (top, left), mirror in zip(chosen, corners, mirrored, strict=True):
            whole = load_picture(self.examples[example].path, config.image_size)
            crop = whole[:, top : top + config.crop_size, left : left + config.crop_size]
            crops.append(crop.flip(2) if mirror else crop)
        return torch.stack(crops)

    @torch.no_grad()
    def sheet(self, count: int = 24) -> Image.Image:
        """Pictures above their reconstructions, evenly drawn from the folder."""
        step = max(1, len(self.examples) // count)
        chosen = self.examples[::step][:count]
        pictures = torch.stack([load_picture(e.path, self.config.image_size) for e in chosen])
        restored = torch.cat(
            [
                self.model.decode(latents_of(self.model, p[None].to(self.model.dtype)))
                .sample.float()
                .clamp(-1, 1)
                for p in pictures
            ]
        )
        return picture_grid(torch.stack([pictures, restored], dim=1).flatten(0, 1), columns=12)


def edge_loss(restored: Tensor, picture: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute error of horizontal and vertical differences, averaged over scales."""
    error = restored - picture
    total = error.new_zeros(())
    for scale in range(scales):
        if scale:
            error = F.avg_pool2d(error, 2)
        total = total + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return total / scales


def opponent_colours(picture: Tensor, scale: int) -> Tensor:
    """Red minus green and blue minus yellow of each square of ``scale`` pixels, ``(n, 2, ...)``."""
    red, green, blue = F.avg_pool2d(picture, scale).unbind(dim=1)
    return torch.stack([red - green, blue - (red + green) / 2], dim=1)


def colour_loss(restored: Tensor, picture: Tensor) -> Tensor:
    """Mean absolute error of the opponent colours of small squares, both summed."""
    return 2 * opponent_colours(restored - picture, scale=4).abs().mean()


def anchor_loss(latents: Tensor, picture: Tensor) -> Tensor:
    """How far the last two latent channels are from the opponent colours of their squares.

    The colours are scaled by `ANCHOR_SCALE` to vary as much as the other channels do: the second
    stage adds the same noise to all.
    """
    target = opponent_colours(picture, picture.shape[-1] // latents.shape[-1])
    return F.l1_loss(latents[:, -2:], ANCHOR_SCALE * target)


def picture_grid(pictures: Tensor, columns: int) -> Image.Image:
    """Pictures ``(n, 3, h, w)`` in [-1, 1] side by side on one white sheet."""
    pixels = ((pictures.float().cpu() + 1) * 127.5).round().clamp(0, 255).byte()
    count, _, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for i, picture in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height, left : left + width] = picture
    return Image.fromarray(sheet)


@torch.no_grad()
def measure_latents(
    model: FirstStage, examples: Sequence[Example], image_size: int, batch_size: int = 16
) -> tuple[Tensor, float]:
    """Means of all latents, and the factor that brings them to unit variance.

    Returns:
        float32 ``(n, channels, height, width)``, and ``1 / std`` over all of them: the paper's
        ``scale_by_std`` (section 4.3.2), to be stored as ``scaling_factor``.
    """
    found = []
    for start in range(0, len(examples), batch_size):
        batch = [load_picture(e.path, image_size) for e in examples[start : start + batch_size]]
        found.append(latents_of(model, torch.stack(batch).to(model.dtype)).float())
    latents = torch.cat(found)
    return latents, float(1.0 / latents.std())


def save_autoencoder(model: FirstStage, folder: Path, scaling_factor: float) -> None:
    """Save in diffusers' layout with the measured ``scaling_factor``."""
    config: Any = model.config.replace(scaling_factor=round(scaling_factor, 6))
    model.config = config
    model.save_pretrained(folder)


def _new_model(
    settings: Mapping[str, Any], examples: Sequence[Example], config: FirstStageTraining
) -> FirstStage:
    """A model with random weights; its codebook, if it has one, from the first pictures."""
    if not isinstance(config, CodebookTraining):
        return AutoencoderKL.from_config(settings)
    known = set(VQModel.config_class.__dataclass_fields__)
    fields = {name: value for name, value in settings.items() if name in known}
    model = VQModel.from_config({**fields, "num_vq_embeddings": config.codebook_size})
    pictures = (load_picture(e.path, config.image_size) for e in examples[:64])
    fill_codebook(model, pictures, torch.Generator().manual_seed(config.seed))
    return model


def train_autoencoder(
    data: Path,
    output: Path,
    config: FirstStageTraining,
    *,
    architecture: Path | None = None,
    init: Path | None = None,
    sample_every: int = 500,
) -> Path:
    """Train a first stage on a folder of pictures; returns the folder of the finished model.

    It is a `VQModel` with a `CodebookTraining`, else an `AutoencoderKL`.

    Args:
        architecture: folder with ``vae.json``; the embedded model's by default.
        init: autoencoder to start from instead of random weights.

    Raises:
        DatasetError, ConfigError, NumericalError: see their descriptions.
    """
    examples = read_pictures(data)
    with_codebook = isinstance(config, CodebookTraining)
    if init:
        settings: dict[str, Any] = {"init": str(init)}
        torch.manual_seed(config.seed)
        model = load_first_stage(init)
        if isinstance(model, VQModel) is not with_codebook:
            raise ConfigError(f"'{init}' is a {type(model).__name__}, which is the other kind.")
    else:
        settings = read_architecture(architecture, "vae")
        torch.manual_seed(config.seed)
        model = _new_model(settings, examples, config)
    recipe = AutoencoderRecipe(model, examples, config)
    trainer = prepare(recipe, config, output, {"architecture": settings})
    run_to_end(trainer, sample_every, lambda: recipe.sheet())
    with trainer.averaged():
        factor = model.config.scaling_factor
        if not config.freeze_encoder:
            _, factor = measure_latents(model, examples, config.image_size)
        save_autoencoder(model, output / "model", factor)
    return output / "model"
