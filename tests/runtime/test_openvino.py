"""The networks compiled by OpenVINO compute what those on torch do, over random configurations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino", reason="needs the extra openvino")

from sfumato.runtime.openvino.compiled import Settings
from sfumato.runtime.openvino.networks import Autoencoder, TextEncoder, UNet
from tests.graph.cases import (
    TEXT_SEEDS,
    UNET_SEEDS,
    VAE_SEEDS,
    Case,
    relative_error,
    text_case,
    unet_case,
    vae_case,
)

FLOAT32 = Settings(threads=1)
BFLOAT16 = Settings(dtype="bfloat16", threads=1)


def predict(case: Case, settings: Settings) -> Any:
    given = dict(case.inputs)
    extra = given.pop("residuals")
    given |= {"down": extra["down"], "blocks": extra["blocks"]}
    given["mid"] = extra["mid"][0] if extra["mid"] else None
    return UNet(case.config, case.arrays, settings)(**given)


@pytest.mark.parametrize("seed", UNET_SEEDS)
def test_a_random_unet_predicts_what_torch_predicts(seed: int) -> None:
    case = unet_case(seed)
    assert relative_error(predict(case, FLOAT32), case.expected["sample"]) < 1e-4


@pytest.mark.parametrize("seed", VAE_SEEDS)
def test_a_random_autoencoder_is_that_of_torch(seed: int) -> None:
    case = vae_case(seed)
    vae = Autoencoder(case.config, case.arrays, FLOAT32)
    moments, images = vae.encode(case.inputs["images"]), vae.decode(case.inputs["latents"])
    assert relative_error(moments, case.expected["moments"]) < 1e-4
    assert relative_error(images, case.expected["images"]) < 1e-4


@pytest.mark.parametrize("seed", TEXT_SEEDS)
def test_a_random_text_encoder_is_that_of_torch(seed: int) -> None:
    case = text_case(seed)
    out = TextEncoder(case.config, case.arrays, FLOAT32)(**case.inputs, **case.options)
    for name, expected in case.expected.items():
        assert relative_error(getattr(out, name), expected) < 1e-4, name
