"""Second stages that draw classes: the loss, whole runs, going on, drawing by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato import AutoencoderKL, ClassEmbedder, DiffusionPipeline, LatentDiffusionPipeline
from sfumato.cli import main
from sfumato.diffusion.schedule import NoiseConfig, alphas_cumprod
from sfumato.errors import ConfigError, DatasetError, InputError
from sfumato.models.unet import UNet2DConditionModel
from sfumato.training.classes import ClassRecipe, ClassTraining, train_classes
from sfumato.training.data import batch_indices, read_classes, step_generator
from sfumato.training.losses import (
    add_noise,
    diffusion_target,
    min_snr_weight,
    stratified_timesteps,
)

SHORT: dict[str, Any] = {"steps": 4, "batch_size": 2, "dtype": "float32", "checkpoint_every": 2}


@pytest.fixture
def by_folder(pictures: Path, tmp_path: Path) -> Path:
    """A folder of pictures for each colour."""
    for path in pictures.glob("*.png"):
        folder = tmp_path / "data" / path.name.split("-")[0]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return tmp_path / "data"


def test_folders_are_classes_and_so_are_captions(by_folder: Path, pictures: Path) -> None:
    examples = read_classes(by_folder)
    assert len(examples) == 8
    assert {e.captions[0] for e in examples} == {"red", "green", "blue", "orange"}
    assert {e.captions[0] for e in read_classes(pictures)} >= {"a red disc", "a blue square"}
    with pytest.raises(DatasetError, match="there are none"):
        read_classes(by_folder / "red")
    with pytest.raises(DatasetError, match="no folder"):
        read_classes(by_folder / "absent")


def test_the_loss_is_that_of_the_network_told_classes_and_sometimes_none(
    architecture: Path,
) -> None:
    torch.manual_seed(0)
    settings = json.loads((architecture / "unet.json").read_text())
    unet = UNet2DConditionModel.from_config({**settings, "in_channels": 4, "out_channels": 4})
    table = ClassEmbedder(n_classes=4, embed_dim=16)
    latents, labels = torch.randn(6, 4, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    noise = NoiseConfig()
    config = ClassTraining(**{**SHORT, "batch_size": 5}, class_dropout=0.5)
    recipe = ClassRecipe(unet, table, latents, labels, noise, config)
    found = recipe.loss(3, step_generator(0, 3))["loss"]
    generator = step_generator(0, 3)
    chosen = torch.from_numpy(batch_indices(6, 5, 3, config.seed))
    drawn = torch.randn(latents[chosen].shape, generator=generator)
    timesteps = stratified_timesteps(5, 1000, generator, 1.0)
    level = torch.tensor(alphas_cumprod(noise), dtype=torch.float32)[timesteps]
    dropped = torch.rand(5, generator=generator) < 0.5
    assert dropped.any() and not dropped.all()
    told = table.embedding.weight[torch.where(dropped, 3, labels[chosen])][:, None]
    noisy = add_noise(latents[chosen], drawn, level)
    answer = unet(noisy, timesteps, encoder_hidden_states=told).sample
    target = diffusion_target(latents[chosen], drawn, level, "v_prediction")
    errors = (answer - target).square().mean(dim=(1, 2, 3))
    weight = min_snr_weight(level, "v_prediction", 5.0)
    assert torch.allclose(found, (errors * weight).mean(), rtol=1e-5)


def test_a_model_of_classes_is_trained_drawn_and_trained_on(
    by_folder: Path, architecture: Path, tmp_path: Path
) -> None:
    settings = json.loads((architecture / "vae.json").read_text())
    AutoencoderKL.from_config(settings).save_pretrained(tmp_path / "vae")
    shared = [str(by_folder), "--image-size", "32", "--steps", "3", "--batch-size", "2"]
    shared += ["--sample-every", "3", "--architecture", str(architecture)]
    run = tmp_path / "run"
    stage = str(tmp_path / "vae")
    assert main(["train", "classes", *shared, "-o", str(run), "--autoencoder", stage]) == 0
    assert len(list((run / "samples").iterdir())) == 1
    pipe = DiffusionPipeline.from_pretrained(run / "model", dtype=torch.float32)
    assert type(pipe) is LatentDiffusionPipeline
    assert pipe.conditioner.config.class_names == ("blue", "green", "orange", "red")
    assert pipe.conditioner.unconditional_class == 4
    call: dict[str, Any] = {"seeds": 1, "num_inference_steps": 2, "guidance_scale": 2.0}
    by_name, by_number = pipe("green", **call).images[0], pipe(1, **call).images[0]
    assert by_name.tobytes() == by_number.tobytes() and by_name.size == (32, 32)
    with pytest.raises(InputError, match=r"no 'gren'\. Did you mean 'green'"):
        pipe(["red", "gren"], **call)
    more = ClassTraining(**SHORT)
    train_classes(
        by_folder, tmp_path / "on", more, init=run / "model", image_size=32, sample_every=0
    )
    assert (tmp_path / "on" / "model" / "model_index.json").is_file()
    (by_folder / "red").rename(by_folder / "pink")
    with pytest.raises(ConfigError, match="does not know the class 'pink'"):
        train_classes(by_folder, tmp_path / "other", more, init=run / "model", image_size=32)


def test_wrong_settings_are_refused(by_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="class_dropout"):
        ClassTraining(class_dropout=1.0)
    with pytest.raises(ConfigError, match="first stage is needed"):
        train_classes(by_folder, tmp_path / "b", ClassTraining(**SHORT))
    for names in (("a", "a"), ("a", "b", "c"), (1,), "ab"):
        with pytest.raises(ConfigError, match="class_names"):
            ClassEmbedder(n_classes=2, class_names=names)
