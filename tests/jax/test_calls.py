"""What a call can be told: lengths of prompts, layers to leave out, distilled networks, keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.jax.small import small_pipeline, small_unet
from tests.pipelines.tiny import tiny_text_encoder

jax = pytest.importorskip("jax")

from sfumato.jax.pipeline import FlaxStableDiffusionPipeline  # noqa: E402

KEY = jax.random.PRNGKey(3)
NOISE = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)


def pair(folder: Path, **changes: Any) -> tuple[Any, Any, Any]:
    """A JAX pipeline, its parameters, and the torch pipeline."""
    pipe = small_pipeline(**changes)
    pipe.save_pretrained(folder)
    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, params, pipe


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    return pair(tmp_path_factory.mktemp("plain"), text_encoder=tiny_text_encoder())


def far(found: Any, expected: Any) -> float:
    return float(np.abs(np.asarray(found) - np.asarray(expected)).max())


def in_torch(pipe: Any, prompt: str, **options: Any) -> np.ndarray:
    noise = torch.from_numpy(NOISE)
    return pipe(prompt, latents=noise, num_inference_steps=2, output_type="np", **options).images


@pytest.mark.parametrize("jit", [False, True])
def test_layers_of_the_text_encoder_are_left_out_as_in_torch(plain: Any, jit: bool) -> None:
    pipeline, params, pipe = plain
    ids, negative = pipeline.prepare_inputs("a cat"), pipeline.prepare_inputs("a dog")
    drawn = []
    for skip in (None, 0, 2):
        found = pipeline(
            ids, params, KEY, 2, latents=NOISE, neg_prompt_ids=negative, clip_skip=skip, jit=jit
        ).images
        expected = in_torch(pipe, "a cat", negative_prompt="a dog", clip_skip=skip)
        assert far(found, expected) < 1e-4
        drawn.append(expected)
    assert far(drawn[0], drawn[2]) > 1e-2


def test_prompts_of_any_length_have_an_empty_one_of_their_length_beside_them(plain: Any) -> None:
    pipeline, params, pipe = plain
    for length in (1, 5, 9):
        ids = pipeline.prepare_inputs("a red apple on a table")[:, :length]
        found = pipeline(ids, params, KEY, 2, latents=NOISE).images
        assert pipeline.tokens([""], length).shape == (1, length)
        hidden = [
            pipe.text_encoder(torch.from_numpy(np.int64(one))).last_hidden_state
            for one in (ids, pipeline.tokens([""], length))
        ]
        expected = pipe(
            prompt_embeds=hidden[0], negative_prompt_embeds=hidden[1], num_inference_steps=2,
            latents=torch.from_numpy(NOISE), output_type="np",
        ).images  # fmt: skip
        assert far(found, expected) < 1e-4


@pytest.mark.parametrize("jit", [False, True])
def test_distilled_networks_are_told_the_scale(tmp_path: Path, jit: bool) -> None:
    pipeline, params, pipe = pair(tmp_path, unet=small_unet(time_cond_proj_dim=21))
    ids, drawn = pipeline.prepare_inputs("a cat"), []
    for scale in (1.0, 8.0):
        found = pipeline(ids, params, KEY, 2, latents=NOISE, guidance_scale=scale, jit=jit).images
        drawn.append(in_torch(pipe, "a cat", guidance_scale=scale))
        assert far(found, drawn[-1]) < 1e-4
    assert far(*drawn) > 1e-3


@pytest.mark.parametrize("end", [49407, 2])
def test_padding_is_hidden_where_the_text_encoder_wants_that(tmp_path: Path, end: int) -> None:
    encoder = tiny_text_encoder(use_attention_mask=True, eos_token_id=end)
    pipeline, params, pipe = pair(tmp_path, text_encoder=encoder)
    ids = pipeline.prepare_inputs("a cat")
    found = pipeline(ids, params, KEY, 2, latents=NOISE).images
    assert far(found, in_torch(pipe, "a cat")) < 1e-4


def test_a_key_means_the_noise_that_it_means_to_jax(plain: Any) -> None:
    pipeline, params, _ = plain
    ids = pipeline.prepare_inputs(["a cat", "a dog"])
    noise = np.asarray(jax.random.normal(KEY, (2, 4, 8, 8)))
    drawn = pipeline(ids, params, KEY, 2).images
    assert far(drawn, pipeline(ids, params, KEY, 2, latents=noise).images) < 1e-6
    typed = jax.random.key(3)
    assert far(drawn, pipeline(ids, params, typed, 2).images) == 0
    again = pipeline(ids, params, KEY, 2).images
    assert np.array_equal(np.asarray(drawn), np.asarray(again))
