"""Text to image with the paper's model: pictures equal those of diffusers' pipeline."""

from __future__ import annotations

import inspect
import random
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion as oracles

import sfumato
from tests.parity.test_ldm_bert import WORDS
from tests.pipelines import tiny


def components(seed: int) -> dict[str, Any]:
    """A random model of diffusers, with its tokenizer in a list of words."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    width = rng.choice([16, 24, 40])
    blocks = rng.choice([1, 2, 4])
    unet = {**tiny.UNET, "cross_attention_dim": width, "sample_size": 8}
    vae = {**tiny.VAE, "block_out_channels": (8,) * blocks, "scaling_factor": rng.uniform(0.1, 2)}
    vae |= {"down_block_types": ("DownEncoderBlock2D",) * blocks, "norm_num_groups": 4}
    vae |= {"up_block_types": ("UpDecoderBlock2D",) * blocks}
    bert = oracles.LDMBertConfig(
        vocab_size=len(WORDS),
        d_model=width,
        encoder_layers=rng.randint(1, 3),
        encoder_ffn_dim=32,
        encoder_attention_heads=rng.choice([1, 3]),
        head_dim=8,
    )
    kind = rng.choice([diffusers.DDIMScheduler, diffusers.DDIMScheduler, diffusers.PNDMScheduler])
    noise = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
    fixed = {"clip_sample": False} if kind is diffusers.DDIMScheduler else {"skip_prk_steps": True}
    return {
        "vqvae": diffusers.AutoencoderKL(**vae).eval(),
        "bert": oracles.LDMBertModel(bert).eval(),
        "unet": diffusers.UNet2DConditionModel(**unet).eval(),
        "scheduler": kind(**noise, **fixed),
    }


def save_theirs(folder: Path, seed: int) -> Any:
    """A folder that diffusers wrote, and its pipeline."""
    sfumato.BertTokenizer(WORDS, model_max_length=77).save_pretrained(folder / "words")
    words = transformers.BertTokenizerFast.from_pretrained(folder / "words")
    theirs = diffusers.LDMTextToImagePipeline(**components(seed), tokenizer=words)
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(folder / "model")
    return theirs


CALLS: list[dict[str, Any]] = [
    {"prompt": "the cat on a dog", "num_inference_steps": 3},
    {"prompt": ["a cat", "painting of dogs"], "num_inference_steps": 4, "guidance_scale": 6.0},
    {"prompt": "a cat", "guidance_scale": 0.4, "num_inference_steps": 2},
    {"prompt": "cats", "height": 32, "width": 96, "num_inference_steps": 2, "guidance_scale": 3.0},
    {"prompt": "", "height": 136, "width": 72, "num_inference_steps": 2, "guidance_scale": 1.5},
]


@pytest.mark.parametrize("seed", range(10))
def test_pictures_of_a_folder_equal_those_of_diffusers(tmp_path: Path, seed: int) -> None:
    theirs = save_theirs(tmp_path, seed)
    ours = sfumato.DiffusionPipeline.from_pretrained(tmp_path / "model")
    assert isinstance(ours, sfumato.LDMTextToImagePipeline)
    ours.set_progress_bar_config(disable=True)
    call = CALLS[seed % len(CALLS)]
    expected = theirs(**call, generator=torch.Generator().manual_seed(seed), output_type="np")
    actual = ours(**call, generator=torch.Generator().manual_seed(seed), output_type="np")
    assert actual.images.shape == expected.images.shape
    assert np.abs(actual.images - expected.images).max() < 1e-4
    assert np.ptp(actual.images) > 1e-3  # there is something to compare


def test_given_latents_and_lists_of_generators_draw_alike(tmp_path: Path) -> None:
    theirs = save_theirs(tmp_path, 4)
    ours = sfumato.LDMTextToImagePipeline.from_pretrained(tmp_path / "model")
    prompts = ["a cat", "the dog", "cats"]
    calls: list[dict[str, Any]] = [
        {"generator": [torch.Generator().manual_seed(i) for i in range(3)]} for _ in range(2)
    ]
    for pipe, call in ((theirs, calls[0]), (ours, calls[1])):
        call["images"] = pipe(prompts, num_inference_steps=2, output_type="np", **call).images
    assert np.abs(calls[0]["images"] - calls[1]["images"]).max() < 1e-4
    side = ours.unet.config.sample_size * ours.vae_scale_factor // 8 or 1
    latents = torch.randn(1, 4, 2 * side, 3 * side, generator=torch.Generator().manual_seed(1))
    size = {"height": 16 * side, "width": 24 * side, "num_inference_steps": 2}
    expected = theirs("a cat", latents=latents.clone(), output_type="np", **size).images
    actual = ours("a cat", latents=latents.clone(), output_type="np", **size).images
    assert np.abs(actual - expected).max() < 1e-4


def test_diffusers_loads_what_we_save(tmp_path: Path) -> None:
    save_theirs(tmp_path, 1)
    ours = sfumato.LDMTextToImagePipeline.from_pretrained(tmp_path / "model")
    ours.save_pretrained(tmp_path / "again")
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "again")
    theirs.set_progress_bar_config(disable=True)
    assert isinstance(theirs, diffusers.LDMTextToImagePipeline)
    call = {"prompt": "a cat", "num_inference_steps": 2, "guidance_scale": 2.0}
    expected = theirs(**call, generator=torch.Generator().manual_seed(1), output_type="np").images
    actual = ours(**call, generator=torch.Generator().manual_seed(1), output_type="np").images
    assert np.abs(actual - expected).max() < 1e-4


def test_a_clip_text_encoder_may_read_the_text() -> None:
    """As in the tests of diffusers, where it stands in for BERT."""
    from tests.parity.oracle_pipeline import oracle_of

    ours = sfumato.LDMTextToImagePipeline(
        vqvae=tiny.tiny_vae(1),
        bert=tiny.tiny_text_encoder(2),
        tokenizer=tiny.tokenizer(),
        unet=tiny.tiny_unet(3),
        scheduler=sfumato.DDIMScheduler(**tiny.SD_SCHEDULER, clip_sample=False),
    )
    theirs = oracle_of(ours)
    call = {"prompt": "a painting", "num_inference_steps": 2, "guidance_scale": 6.0}
    expected = theirs(**call, generator=torch.manual_seed(0), output_type="np").images
    actual = ours(**call, generator=torch.manual_seed(0), output_type="np").images
    assert np.abs(actual - expected).max() < 1e-4


def test_the_arguments_are_those_of_diffusers() -> None:
    def arguments(cls: Any) -> list[tuple[str, Any]]:
        listed = inspect.signature(cls.__call__).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
        return [(p.name, p.default) for p in listed if p.kind in kinds]

    assert arguments(sfumato.LDMTextToImagePipeline) == arguments(diffusers.LDMTextToImagePipeline)
    ours = inspect.signature(sfumato.LDMTextToImagePipeline).parameters
    assert list(ours) == list(inspect.signature(diffusers.LDMTextToImagePipeline).parameters)


def test_wrong_arguments_are_refused_as_in_diffusers() -> None:
    pipe = sfumato.LDMTextToImagePipeline(
        vqvae=tiny.tiny_vae(1),
        bert=tiny.tiny_text_encoder(2),
        tokenizer=tiny.tokenizer(),
        unet=tiny.tiny_unet(3),
        scheduler=sfumato.DDIMScheduler(**tiny.SD_SCHEDULER),
    )
    generators = [torch.Generator() for _ in range(3)]
    for call, message in (
        ({"prompt": 3}, "`prompt` has to be of type `str` or `list` but is"),
        ({"prompt": "a", "height": 20}, "divisible by 8"),
        ({"prompt": "a", "latents": torch.zeros(1, 3, 8, 8)}, "latents"),
        ({"prompt": ["a", "b"], "generator": generators}, "generators"),
        ({"prompt": ["a", "b"], "negative_prompt": ["a"] * 3}, "`negative_prompt` has 3 texts"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(**call, num_inference_steps=1, guidance_scale=2.0)
    with pytest.raises(TypeError, match="guidance_scal"):
        pipe("a", guidance_scal=2.0)
