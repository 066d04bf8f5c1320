"""The text-to-image recipe: captions, dropout, loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sfumato.diffusion.schedule import NoiseConfig, alphas_cumprod
from sfumato.errors import ConfigError, DatasetError
from sfumato.models.unet import UNet2DConditionModel
from sfumato.text.clip import CLIPTextModel
from sfumato.text.tokenizer import CLIPTokenizer
from sfumato.training.data import Example, batch_indices, read_folder, step_generator
from sfumato.training.losses import (
    PREDICTIONS,
    add_noise,
    diffusion_target,
    stratified_timesteps,
)
from sfumato.training.text_to_image import TextToImageRecipe, TextToImageTraining


def make(
    pictures: Path, architecture: Path, **settings: object
) -> tuple[TextToImageRecipe, list[Example]]:
    torch.manual_seed(0)
    examples = read_folder(pictures)
    unet = UNet2DConditionModel.from_config(json.loads((architecture / "unet.json").read_text()))
    text = json.loads((architecture / "text_encoder.json").read_text())
    encoder = CLIPTextModel.from_config(text)
    tokenizer = CLIPTokenizer(model_max_length=12)
    latents = torch.randn(len(examples), 4, 16, 16)
    config = TextToImageTraining(batch_size=4, dtype="float32", **settings)
    recipe = TextToImageRecipe(unet, encoder, tokenizer, latents, examples, NoiseConfig(), config)
    return recipe, examples


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_the_error_of_the_networks_answer(
    pictures: Path, architecture: Path, prediction: str
) -> None:
    """Recomputed from the same draws, in their order: noise, timesteps, captions."""
    recipe, examples = make(
        pictures, architecture, prediction_type=prediction, snr_gamma=None, caption_dropout=0.0
    )
    for step in (0, 3):
        loss = recipe.loss(step, step_generator(5, step))["loss"]
        generator = step_generator(5, step)
        chosen = torch.from_numpy(batch_indices(len(examples), 4, step, 0))
        latents = recipe.latents[chosen]
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = stratified_timesteps(4, 1000, generator)
        bar = torch.tensor(alphas_cumprod(NoiseConfig()), dtype=torch.float32)[timesteps]
        ids = recipe.captions.draw(chosen, generator)
        context = recipe.text_encoder(ids).last_hidden_state
        noisy = add_noise(latents, noise, bar)
        answer = recipe.unet(noisy, timesteps, encoder_hidden_states=context).sample
        expected = (answer - diffusion_target(latents, noise, bar, prediction)).square().mean()
        assert torch.allclose(loss, expected, rtol=1e-5)


def test_every_caption_of_a_picture_is_drawn_and_no_other(
    pictures: Path, architecture: Path
) -> None:
    recipe, examples = make(pictures, architecture, caption_dropout=0.0)
    tokenizer = CLIPTokenizer(model_max_length=12)
    seen: set[str] = set()
    for step in range(40):
        ids = recipe.captions.draw(torch.tensor([2, 5]), step_generator(0, step))
        first, second = tokenizer.batch_decode(ids, skip_special_tokens=True)
        assert first.replace(" ,", ",") in examples[2].captions
        assert second.replace(" ,", ",") in examples[5].captions
        seen.add(first)
    assert len(seen) == len(examples[2].captions)


def test_the_stated_share_of_captions_is_dropped(pictures: Path, architecture: Path) -> None:
    recipe, _ = make(pictures, architecture, caption_dropout=0.25)
    chosen = torch.zeros(4000, dtype=torch.long)
    ids = recipe.captions.draw(chosen, torch.Generator().manual_seed(0))
    share = (ids == recipe.captions.nothing).all(dim=1).float().mean()
    assert abs(share - 0.25) < 0.03


def test_latents_have_to_match_the_pictures(pictures: Path, architecture: Path) -> None:
    recipe, examples = make(pictures, architecture)
    with pytest.raises(DatasetError, match=r"8 latents for 7 pictures"):
        TextToImageRecipe(
            recipe.unet,
            recipe.text_encoder,
            CLIPTokenizer(model_max_length=12),
            recipe.latents,
            examples[:7],
            NoiseConfig(),
            recipe.config,
        )


def test_latents_have_to_fit_the_unet(pictures: Path, architecture: Path) -> None:
    recipe, examples = make(pictures, architecture)
    tokenizer = CLIPTokenizer(model_max_length=12)
    networks = (recipe.unet, recipe.text_encoder, tokenizer)
    with pytest.raises(ConfigError, match=r"have 6 channels, but the UNet takes 4"):
        latents = torch.randn(8, 6, 16, 16)
        TextToImageRecipe(*networks, latents, examples, NoiseConfig(), recipe.config)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prediction_type": "velocity"},
        {"caption_dropout": 1.0},
        {"snr_gamma": -1.0},
        {"timestep_shift": 0.0},
        {"batch_size": 0},
        {"steps": 2.5},
        {"dtype": "float16"},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TextToImageTraining(**wrong)
