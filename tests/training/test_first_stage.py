"""First stages with a codebook, and second stages without a text: recipes and whole runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato import AutoencoderKL, DiffusionPipeline, VQModel
from sfumato.cli import main
from sfumato.diffusion.schedule import NoiseConfig, alphas_cumprod
from sfumato.errors import ConfigError, DatasetError
from sfumato.models.unet_2d import UNet2DModel
from sfumato.pipelines.ldm import LDMPipeline
from sfumato.training.autoencoder import (
    AutoencoderRecipe,
    AutoencoderTraining,
    CodebookTraining,
    colour_loss,
    edge_loss,
    train_autoencoder,
)
from sfumato.training.data import batch_indices, read_folder, read_pictures, step_generator
from sfumato.training.denoising import DenoisingTraining
from sfumato.training.first_stage import fill_codebook, latents_of, load_first_stage
from sfumato.training.losses import (
    add_noise,
    diffusion_target,
    min_snr_weight,
    stratified_timesteps,
)
from sfumato.training.unconditional import UnconditionalRecipe, train_unconditional

SHORT: dict[str, Any] = {"steps": 4, "batch_size": 2, "dtype": "float32", "checkpoint_every": 2}
SIZES: dict[str, Any] = {"image_size": 32, "crop_size": 16}


def vq(architecture: Path, codebook: int = 16) -> VQModel:
    torch.manual_seed(0)
    settings = json.loads((architecture / "vae.json").read_text())
    return VQModel.from_config({**settings, "num_vq_embeddings": codebook})


@pytest.fixture(scope="module")
def plain_folder(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures without their captions."""
    folder = tmp_path_factory.mktemp("plain")
    for path in pictures.glob("*.png"):
        shutil.copy(path, folder)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_the_loss_of_a_codebook_is_what_its_terms_say(pictures: Path, architecture: Path) -> None:
    model, examples = vq(architecture), read_folder(pictures)
    config = CodebookTraining(**SHORT, **SIZES, commit_weight=0.7, anchor_weight=0)
    recipe = AutoencoderRecipe(model, examples, config)
    terms = recipe.loss(1, step_generator(5, 1))
    crops = recipe._crops(1, step_generator(5, 1))
    output = model(crops)
    error = (output.sample - crops).abs().mean()
    loss = error + edge_loss(output.sample, crops) + colour_loss(output.sample, crops)
    assert torch.allclose(terms["loss"], loss + 0.7 * output.commit_loss, atol=1e-5)
    used = len(model.quantize(model.encode(crops).latents).indices.unique()) / 16
    assert float(terms["codebook used"]) == pytest.approx(used)
    terms["loss"].backward()
    assert model.quantize.embedding.weight.grad is not None
    assert model.encoder.conv_in.weight.grad is not None


def test_a_codebook_begins_among_the_latents(architecture: Path) -> None:
    model = vq(architecture, 64)
    pictures = torch.rand(6, 3, 32, 32) * 2 - 1
    before = len(model.quantize(latents_of(model, pictures)).indices.unique())
    fill_codebook(model, pictures, torch.Generator().manual_seed(1))
    after = model.quantize(latents_of(model, pictures))
    assert len(after.indices.unique()) > max(before, 48)
    assert after.loss < 0.1 * latents_of(model, pictures).var()


def test_a_frozen_encoder_keeps_its_latents_and_codebook(
    pictures: Path, architecture: Path
) -> None:
    model = vq(architecture)
    config = CodebookTraining(**SHORT, **SIZES, freeze_encoder=True)
    recipe = AutoencoderRecipe(model, read_folder(pictures), config)
    recipe.loss(0, step_generator(0, 0))["loss"].backward()
    learning = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learning
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in learning)


def test_the_loss_without_a_text_is_the_error_of_the_networks_answer(pictures: Path) -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    latents, config = torch.randn(8, 4, 8, 8), DenoisingTraining(**{**SHORT, "batch_size": 4})
    recipe = UnconditionalRecipe(unet, latents, NoiseConfig(), config)
    loss = recipe.loss(3, step_generator(5, 3))["loss"]
    generator = step_generator(5, 3)
    clean = latents[torch.from_numpy(batch_indices(8, 4, 3, 0))]
    noise = torch.randn(clean.shape, generator=generator)
    timesteps = stratified_timesteps(4, 1000, generator)
    bar = torch.tensor(alphas_cumprod(NoiseConfig()), dtype=torch.float32)[timesteps]
    answer = unet(add_noise(clean, noise, bar), timesteps).sample
    error = (answer - diffusion_target(clean, noise, bar, "v_prediction")).square()
    expected = (error.flatten(1).mean(1) * min_snr_weight(bar, "v_prediction", 5.0)).mean()
    assert torch.allclose(loss, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def first_stages(
    plain_folder: Path, architecture: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A trained first stage of each kind."""
    made = {}
    for kind, config in {
        "kl": AutoencoderTraining(**SHORT, **SIZES),
        "vq": CodebookTraining(**SHORT, **SIZES, codebook_size=32),
    }.items():
        run = tmp_path_factory.mktemp(kind)
        made[kind] = train_autoencoder(
            plain_folder, run, config, architecture=architecture, sample_every=4
        )
        assert (run / "samples" / "step-00000004.png").is_file()
    return made


def test_either_kind_is_trained_on_a_folder_of_pictures_alone(
    first_stages: dict[str, Path], plain_folder: Path
) -> None:
    kl, codebook = (load_first_stage(first_stages[kind]) for kind in ("kl", "vq"))
    assert isinstance(kl, AutoencoderKL)
    assert isinstance(codebook, VQModel)
    assert codebook.config.num_vq_embeddings == 32
    assert len(read_pictures(plain_folder)) == 8
    for model in (kl, codebook):
        assert model.config.scaling_factor != 1.0


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_second_stage_without_a_text_is_trained_and_drawn(
    kind: str, first_stages: dict[str, Path], plain_folder: Path, tmp_path: Path
) -> None:
    unet = {
        "block_out_channels": [16, 32],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    noise = {"num_train_timesteps": 1000, "beta_start": 0.001, "beta_end": 0.02}
    noise["beta_schedule"] = "scaled_linear"  # type: ignore[assignment]
    (tmp_path / "unconditional.json").write_text(json.dumps(unet))
    (tmp_path / "scheduler.json").write_text(json.dumps(noise))
    shared = [str(plain_folder), "--image-size", "32", "--steps", "3", "--batch-size", "2"]
    shared += ["--sample-every", "0", "--architecture", str(tmp_path)]
    run = tmp_path / "run"
    stage = str(first_stages[kind])
    assert main(["train", "unconditional", *shared, "-o", str(run), "--autoencoder", stage]) == 0
    pipe = DiffusionPipeline.from_pretrained(run / "model", dtype=torch.float32)
    assert type(pipe) is LDMPipeline
    assert type(pipe.vqvae) is (VQModel if kind == "vq" else AutoencoderKL)
    assert pipe.unet.config.in_channels == 4
    assert pipe.unet.config.sample_size == 16
    assert pipe.scheduler.config.beta_end == 0.02
    images = pipe(2, seeds=[1, 2], num_inference_steps=2).images
    assert images[0].size == (32, 32)
    more = DenoisingTraining(**SHORT)
    train_unconditional(
        plain_folder, tmp_path / "on", more, init=run / "model", image_size=32, sample_every=0
    )
    assert (tmp_path / "on" / "model" / "model_index.json").is_file()


# What is refused


def test_wrong_settings_are_refused(
    first_stages: dict[str, Path], plain_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="commit_weight"):
        CodebookTraining(commit_weight=-1)
    with pytest.raises(ConfigError, match="codebook_size"):
        CodebookTraining(codebook_size=1)
    with pytest.raises(ConfigError, match="VQModel, which is the other kind"):
        config = AutoencoderTraining(**SHORT, **SIZES)
        train_autoencoder(plain_folder, tmp_path / "a", config, init=first_stages["vq"])
    with pytest.raises(ConfigError, match="first stage is needed"):
        train_unconditional(plain_folder, tmp_path / "b", DenoisingTraining(**SHORT))


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there are none"):
        read_pictures(tmp_path)
    with pytest.raises(DatasetError, match="no folder"):
        read_pictures(tmp_path / "absent")
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(DatasetError, match=r"a\.png"):
        read_pictures(tmp_path)


def test_a_folder_of_another_network_is_no_first_stage(tmp_path: Path) -> None:
    UNet2DModel(
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    ).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="holds a UNet2DModel"):
        load_first_stage(tmp_path)
