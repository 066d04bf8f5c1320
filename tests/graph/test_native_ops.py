"""The networks by the compiled kernels compute what those on torch do."""

from __future__ import annotations

import pytest

from sfumato.graph.autoencoder import decode, encode
from sfumato.graph.clip_text import clip_text
from sfumato.native.library import can_compute
from tests.graph.cases import (
    TEXT_SEEDS,
    UNET_SEEDS,
    VAE_SEEDS,
    relative_error,
    run_unet,
    text_case,
    unet_case,
    vae_case,
)

if not can_compute("float32"):
    pytest.skip("there are no compiled kernels here", allow_module_level=True)

from sfumato.graph.native_ops import NativeOps

OPS = NativeOps(threads=1)


@pytest.mark.parametrize("seed", list(UNET_SEEDS)[:25])
def test_a_random_unet_predicts_what_torch_predicts(seed: int) -> None:
    case = unet_case(seed)
    assert relative_error(run_unet(OPS, case, case.weights()), case.expected["sample"]) < 1e-5


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
