"""The text encoder's recipe: what it predicts, and that the second stage starts from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sfumato.cli import main
from sfumato.errors import ConfigError, DatasetError
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.text.clip import CLIPTextModel
from sfumato.text.tokenizer import CLIPTokenizer
from sfumato.training.captions import CaptionedTraining, tokenize
from sfumato.training.data import batch_indices, read_folder, step_generator
from sfumato.training.loop import train
from sfumato.training.optimizer import OptimizerConfig
from sfumato.training.text_encoder import LatentHead, TextEncoderRecipe, train_text_encoder


def make(
    pictures: Path, architecture: Path, *, count: int | None = None, **settings: object
) -> TextEncoderRecipe:
    torch.manual_seed(0)
    examples = read_folder(pictures)
    settings = {"batch_size": 4, "dtype": "float32", "caption_dropout": 0.0, **settings}
    encoder = CLIPTextModel.from_config(
        json.loads((architecture / "text_encoder.json").read_text())
    )
    return TextEncoderRecipe(
        encoder,
        CLIPTokenizer(model_max_length=12),
        torch.randn(count or len(examples), 4, 8, 8),
        examples,
        CaptionedTraining(**settings),
    )


def test_the_loss_is_the_distance_to_the_chosen_latents(pictures: Path, architecture: Path) -> None:
    recipe = make(pictures, architecture)
    for step in (0, 3):
        loss = recipe.loss(step, step_generator(5, step))["loss"]
        chosen = torch.from_numpy(batch_indices(8, 4, step, 0))
        ids = recipe.captions.draw(chosen, step_generator(5, step))
        answer = recipe.head(recipe.text_encoder(ids).last_hidden_state)
        assert torch.allclose(loss, (answer - recipe.latents[chosen]).square().mean(), rtol=1e-5)


def test_captions_are_learnt_apart(pictures: Path, architecture: Path, tmp_path: Path) -> None:
    """Each of eight captions comes to give its own random latent, not the mean of all."""
    recipe = make(
        pictures,
        architecture,
        steps=400,
        batch_size=8,
        checkpoint_every=1000,
        optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=10),
    )
    losses = [step.loss for step in train(recipe, recipe.config, tmp_path)]
    of_the_mean = float(recipe.latents.var(dim=0, unbiased=False).mean())
    assert losses[0] > of_the_mean * 0.9
    assert losses[-1] < of_the_mean * 0.3


@pytest.mark.parametrize(("shape", "patch"), [((4, 8, 8), 2), ((6, 4, 12), 4), ((1, 6, 2), 1)])
def test_the_head_answers_in_the_latents_shape(shape: tuple[int, int, int], patch: int) -> None:
    head = LatentHead(16, shape, patch)
    assert head(torch.randn(3, 5, 16)).shape == (3, *shape)


def test_each_query_reads_its_own_square() -> None:
    head = LatentHead(16, (1, 4, 6), patch=2)
    context = torch.randn(1, 5, 16)
    before = head(context)
    with torch.no_grad():
        head.places[4] += 1.0  # second row, second column
    changed = (head(context) != before)[0, 0]
    assert changed[2:4, 2:4].all()
    assert changed.sum() == 4


def test_latents_of_odd_sides_are_refused() -> None:
    with pytest.raises(ConfigError, match="5x4 cannot be parted into squares of 2"):
        LatentHead(16, (4, 5, 4))


def test_latents_have_to_match_the_pictures(pictures: Path, architecture: Path) -> None:
    with pytest.raises(DatasetError, match="7 latents for 8 pictures"):
        make(pictures, architecture, count=7)


@pytest.mark.parametrize(("rate", "more"), [("1e-9", []), ("0.1", ["--freeze-text-encoder"])])
def test_the_second_stage_starts_from_it(
    pictures: Path,
    architecture: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    rate: str,
    more: list[str],
) -> None:
    """Both commands, as a user types them; a rate near zero, or freezing, keeps the start."""
    torch.manual_seed(0)
    settings = json.loads((architecture / "vae.json").read_text())
    AutoencoderKL.from_config(settings).save_pretrained(tmp_path / "vae")
    shared = [str(pictures), "--autoencoder", str(tmp_path / "vae"), "--image-size", "32"]
    shared += ["--architecture", str(architecture), "--batch-size", "2", "--threads", "1"]
    first = ["--steps", "2", "--output", str(tmp_path / "text"), "--sample-every", "2"]
    assert main(["train", "text-encoder", *shared, *first]) == 0
    folder = Path(capfd.readouterr().out.strip())
    assert folder == tmp_path / "text" / "model"
    assert (tmp_path / "text" / "samples" / "step-00000002.png").exists()
    second = ["--steps", "1", "--output", str(tmp_path / "run"), "--sample-every", "0"]
    second += ["--text-encoder", str(folder), "--learning-rate", rate, *more]
    assert main(["train", "text-to-image", *shared, *second]) == 0
    start = CLIPTextModel.from_pretrained(folder)
    end = CLIPTextModel.from_pretrained(tmp_path / "run" / "model" / "text_encoder")
    for key, tensor in start.state_dict().items():
        assert torch.allclose(end.state_dict()[key].float(), tensor, rtol=0.01, atol=1e-6), key


def test_a_run_goes_on_where_it_stopped(pictures: Path, architecture: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = json.loads((architecture / "vae.json").read_text())
    AutoencoderKL.from_config(settings).save_pretrained(tmp_path / "vae")

    def run(name: str, *lengths: int) -> CLIPTextModel:
        for steps in lengths:
            folder = train_text_encoder(
                pictures,
                tmp_path / name,
                CaptionedTraining(
                    steps=steps, batch_size=3, optimizer=OptimizerConfig(decay_share=0.0)
                ),
                autoencoder=tmp_path / "vae",
                architecture=architecture,
                image_size=32,
                sample_every=0,
            )
        return CLIPTextModel.from_pretrained(folder)

    whole, parted = run("whole", 6), run("parted", 2, 6)
    ids = tokenize(CLIPTokenizer(model_max_length=12), ["a red disc"])
    assert torch.equal(whole(ids).last_hidden_state, parted(ids).last_hidden_state)
