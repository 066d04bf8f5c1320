"""The networks on NumPy compute what those on torch do, over random configurations."""

from __future__ import annotations

import pytest

from sfumato.graph.autoencoder import decode, encode
from sfumato.graph.clip_text import clip_text
from sfumato.graph.clip_vision import clip_vision
from sfumato.graph.numpy_ops import NumpyOps
from tests.graph.cases import (
    TEXT_SEEDS,
    UNET_SEEDS,
    VAE_SEEDS,
    VISION_SEEDS,
    relative_error,
    run_unet,
    text_case,
    unet_case,
    vae_case,
    vision_case,
)

OPS = NumpyOps()


@pytest.mark.parametrize("seed", UNET_SEEDS)
def test_a_random_unet_predicts_what_torch_predicts(seed: int) -> None:
    case = unet_case(seed)
    actual = run_unet(OPS, case, case.weights())
    assert relative_error(actual, case.expected["sample"]) < 1e-5


@pytest.mark.parametrize("seed", VAE_SEEDS)
def test_a_random_autoencoder_is_that_of_torch(seed: int) -> None:
    case = vae_case(seed)
    weights = case.weights()
    moments = encode(OPS, weights, case.config, case.inputs["images"])
    assert relative_error(moments, case.expected["moments"]) < 1e-5
    images = decode(OPS, weights, case.config, case.inputs["latents"])
    assert relative_error(images, case.expected["images"]) < 1e-5


@pytest.mark.parametrize("seed", TEXT_SEEDS)
def test_a_random_text_encoder_is_that_of_torch(seed: int) -> None:
    case = text_case(seed)
    out = clip_text(OPS, case.weights(), case.config, **case.inputs, **case.options)
    for name, expected in case.expected.items():
        assert relative_error(getattr(out, name), expected) < 1e-5, name


@pytest.mark.parametrize("seed", VISION_SEEDS)
def test_a_random_vision_encoder_is_that_of_torch(seed: int) -> None:
    case = vision_case(seed)
    out = clip_vision(OPS, case.weights(), case.config, **case.inputs)
    for name, expected in case.expected.items():
        assert relative_error(getattr(out, name), expected) < 1e-5, name
