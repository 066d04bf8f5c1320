"""What training asks of a first stage, with Gaussian latents (KL) or those of a codebook (VQ)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from sfumato.checkpoints.places import read_config
from sfumato.errors import ConfigError
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.vq_autoencoder import VQModel

FirstStage: TypeAlias = AutoencoderKL | VQModel

KINDS: dict[str, type[FirstStage]] = {"kl": AutoencoderKL, "vq": VQModel}


@dataclass(frozen=True)
class Restored:
    """A picture that went through a first stage.

    Attributes:
        picture: what came out, ``(batch, 3, height, width)``.
        latents: the most likely ones, before noise or codebook.
        bound: what keeps the latents in bounds, to be weighed: the KL divergence per latent value,
            or the loss of the codebook.
        used: share of the codebook's vectors that the batch uses; None without one.
    """

    picture: Tensor
    latents: Tensor
    bound: Tensor
    used: float | None = None


def restore(model: FirstStage, picture: Tensor, generator: torch.Generator) -> Restored:
    """Encode and decode a batch as in training; only Gaussian latents draw noise."""
    if isinstance(model, VQModel):
        latents = model.encode(picture).latents
        found = model.quantize(latents)
        image = model.decode(found.latents, force_not_quantize=True).sample
        used = len(found.indices.unique()) / model.quantize.n_e
        return Restored(image, latents, found.loss.float(), used)
    posterior = model.encode(picture).latent_dist
    image = model.decode(posterior.sample(generator=generator)).sample
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    return Restored(image, posterior.mean, kl)


def latents_of(model: FirstStage, picture: Tensor) -> Tensor:
    """The most likely latents, as diffusion models are trained on them, but not scaled."""
    if isinstance(model, VQModel):
        return model.encode(picture).latents
    return model.encode(picture).latent_dist.mode()


def freeze_encoder(model: FirstStage) -> None:
    """Leave the way to the latents as it is, the codebook included."""
    for part in (model.encoder, model.quant_conv, getattr(model, "quantize", None)):
        if part is not None:
            part.requires_grad_(False)


@torch.no_grad()
def fill_codebook(model: VQModel, pictures: Iterable[Tensor], generator: torch.Generator) -> None:
    """Begin with latents of pictures as the codebook, so that its vectors are in use at once.

    Vectors far from all latents would never be the nearest, and never learn.
    """
    width = model.quantize.vq_embed_dim
    rows = [
        latents_of(model, p[None].to(model.dtype)).movedim(1, -1).reshape(-1, width)
        for p in pictures
    ]
    found = torch.cat(rows)
    chosen = torch.randint(len(found), (model.quantize.n_e,), generator=generator)
    jitter = torch.randn(model.quantize.n_e, width, generator=generator) * found.std() * 0.01
    model.quantize.embedding.weight.copy_(found[chosen] + jitter)


def load_first_stage(folder: Path) -> FirstStage:
    """The first stage in a folder, in float32.

    Raises:
        ConfigError: it is of another class.
        CheckpointError: it is damaged.
    """
    name = str(read_config(folder, "config.json", folder).get("_class_name"))
    kind = next((cls for cls in KINDS.values() if cls.__name__ == name), None)
    if kind is None:
        raise ConfigError(
            f"'{folder}' holds a {name[:80]}.",
            hint="A first stage is an AutoencoderKL or a VQModel.",
        )
    return kind.from_pretrained(folder, dtype=torch.float32)
