"""Whole training runs: what ``sfumato train`` does, callable from Python.

Each run lives in one folder: settings, checkpoints, ``log.jsonl``, ``loss.png``, sample sheets and,
at its end, ``model/`` in diffusers' layout.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from sfumato.config import Config
from sfumato.diffusion.schedule import NoiseConfig
from sfumato.errors import ConfigError
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.unet import UNet2DConditionModel
from sfumato.text.clip import CLIPTextModel
from sfumato.text.tokenizer import CLIPTokenizer
from sfumato.training.autoencoder import (
    AutoencoderRecipe,
    AutoencoderTraining,
    measure_latents,
    save_autoencoder,
)
from sfumato.training.checkpoint import agree_on_config
from sfumato.training.data import read_folder
from sfumato.training.loop import Recipe, TrainConfig, Trainer
from sfumato.training.optimizer import learning_rate
from sfumato.training.report import Log, plot_loss, read_log
from sfumato.training.samples import SampleSheet
from sfumato.training.text_to_image import TextToImageRecipe, TextToImageTraining

logger = logging.getLogger(__name__)

DEFAULT_ARCHITECTURE = Path(__file__).parent.parent / "assets" / "architecture"


def train_autoencoder(
    data: Path,
    output: Path,
    config: AutoencoderTraining,
    *,
    architecture: Path | None = None,
    init: Path | None = None,
    sample_every: int = 500,
) -> Path:
    """Train a first stage on a folder of pictures; returns the folder of the finished model.

    Args:
        architecture: folder with ``vae.json``; the embedded model's by default.
        init: autoencoder to start from instead of random weights.

    Raises:
        DatasetError, ConfigError, NumericalError: see their descriptions.
    """
    examples = read_folder(data)
    if init:
        settings: dict[str, Any] = {"init": str(init)}
        torch.manual_seed(config.seed)
        model = AutoencoderKL.from_pretrained(init, dtype=torch.float32)
    else:
        settings = _read_architecture(architecture, "vae")
        torch.manual_seed(config.seed)
        model = AutoencoderKL.from_config(settings)
    recipe = AutoencoderRecipe(model, examples, config)
    trainer = _prepare(recipe, config, output, {"architecture": settings})
    _run(trainer, sample_every, lambda: recipe.sheet())
    with trainer.averaged():
        model.to(torch.float32)
        trainer.optimizer.copy_averages()
        factor = model.config.scaling_factor
        if not config.freeze_encoder:
            _, factor = measure_latents(model, examples, config.image_size)
        save_autoencoder(model, output / "model", factor)
    return output / "model"


def train_text_to_image(
    data: Path,
    output: Path,
    config: TextToImageTraining,
    *,
    autoencoder: Path,
    architecture: Path | None = None,
    image_size: int = 128,
    sample_every: int = 500,
) -> Path:
    """Train a second stage; returns the folder of the finished pipeline, weights in bfloat16.

    Args:
        autoencoder: folder of the first stage.
        architecture: folder with ``unet.json``, ``text_encoder.json`` and ``scheduler.json``.

    Raises:
        DatasetError, ConfigError, NumericalError: see their descriptions.
    """
    from sfumato.training.latents import cached_latents

    examples = read_folder(data)
    parts = {n: _read_architecture(architecture, n) for n in ("unet", "text_encoder", "scheduler")}
    parts["scheduler"]["prediction_type"] = config.prediction_type
    vae = AutoencoderKL.from_pretrained(autoencoder, dtype=torch.float32)
    latents = cached_latents(vae, autoencoder, examples, image_size, output)
    torch.manual_seed(config.seed)
    unet = UNet2DConditionModel.from_config(parts["unet"])
    text_encoder = CLIPTextModel.from_config(parts["text_encoder"])
    tokenizer = CLIPTokenizer(model_max_length=text_encoder.config.max_position_embeddings)
    noise = NoiseConfig.from_dict(parts["scheduler"])
    recipe = TextToImageRecipe(unet, text_encoder, tokenizer, latents, examples, noise, config)
    trainer = _prepare(recipe, config, output, {"architecture": parts, "image_size": image_size})
    sheet = SampleSheet(recipe, vae, tokenizer, parts["scheduler"])
    _run(trainer, sample_every, sheet.draw)
    with trainer.averaged():
        sheet.save_pipeline(output / "model")
    return output / "model"


def _read_architecture(folder: Path | None, name: str) -> dict[str, Any]:
    path = (folder or DEFAULT_ARCHITECTURE) / f"{name}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{path}' cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"'{path}' has to hold a JSON object.")
    return found


def _prepare(recipe: Recipe, config: TrainConfig, run: Path, settings: dict[str, Any]) -> Trainer:
    agree_on_config(run, {**Config.to_dict(config), **settings})
    trainer = Trainer(recipe, config, run)
    if finished := trainer.resume():
        logger.info("resuming '%s' after %d steps", run, finished)
    return trainer


def _run(trainer: Trainer, sample_every: int, draw: Callable[[], Image.Image]) -> None:
    """Iterate over the remaining steps with log, progress bar (on a terminal) and sheets."""
    run, config = trainer.run, trainer.config
    log = Log(run / "log.jsonl", trainer.finished)
    bar = tqdm(total=config.steps, initial=trainer.finished, disable=None, unit="step")
    try:
        for step in trainer.steps():
            log.add(step, learning_rate(config.optimizer, step.index, config.steps))
            bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
            bar.update()
            done = step.index + 1
            if sample_every and (done % sample_every == 0 or done == config.steps):
                _publish(trainer, draw, done)
    except KeyboardInterrupt:
        trainer.save()
        raise
    finally:
        bar.close()
        log.close()


def _publish(trainer: Trainer, draw: Callable[[], Image.Image], done: int) -> None:
    folder = trainer.run / "samples"
    folder.mkdir(exist_ok=True)
    with trainer.averaged():
        draw().save(folder / f"step-{done:08d}.png")
    plot_loss(read_log(trainer.run / "log.jsonl")).save(trainer.run / "loss.png")
