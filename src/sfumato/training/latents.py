"""Latents of the training pictures, encoded once and kept beside the run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.checkpoints.atomic import atomic_path
from sfumato.training.autoencoder import measure_latents
from sfumato.training.data import Example
from sfumato.training.first_stage import FirstStage


def cached_latents(
    vae: FirstStage, folder: Path, examples: Sequence[Example], image_size: int, run: Path
) -> Tensor:
    """Scaled latents of all examples, float32 ``(n, channels, height, width)``.

    They are read from ``run/latents-<key>.safetensors`` when autoencoder, pictures and size are
    those of an earlier call, else computed and written there.
    """
    path = run / f"latents-{_fingerprint(folder, examples, image_size)}.safetensors"
    if path.exists():
        return load_file(path)["latents"]
    vae.eval()
    latents, _ = measure_latents(vae, examples, image_size)
    latents = (latents * vae.config.scaling_factor).contiguous()
    run.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as draft:
        save_file({"latents": latents}, draft)
    return latents


def _fingerprint(folder: Path, examples: Sequence[Example], image_size: int) -> str:
    digest = hashlib.sha256(f"{image_size} {torch.float32}".encode())
    for file in sorted(folder.iterdir()):
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    for example in examples:
        stat = example.path.stat()
        digest.update(f"{example.path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]
