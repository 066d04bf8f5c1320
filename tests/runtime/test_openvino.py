"""The networks compiled by OpenVINO compute what those on torch do, over random configurations."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino", reason="needs the extra openvino")

from sfumato.checkpoints.arrays import StoredTensor
from sfumato.errors import InputError, WeightsMismatchError
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


@pytest.mark.parametrize("seed", UNET_SEEDS[:24])
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


@pytest.mark.parametrize("seed", [0, 3, 5, 14, 17, 20])
def test_bfloat16_stays_near_float32(seed: int) -> None:
    case = unet_case(seed)
    actual, expected = predict(case, BFLOAT16), case.expected["sample"]
    apart = np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2))
    assert 0 < apart < 0.03


@pytest.mark.parametrize("dtype", [np.float16, "BF16"])
def test_weights_in_16_bits_are_taken_as_they_are_stored(dtype: Any) -> None:
    case = unet_case(1)
    if dtype == "BF16":
        bits = {k: np.asarray(v, np.float32).view(np.uint32) >> 16 for k, v in case.arrays.items()}
        stored = {
            k: StoredTensor(k, "BF16", v.astype(np.uint16), Path("weights"))
            for k, v in bits.items()
        }
        rounded = {k: v.float32() for k, v in stored.items()}
    else:
        stored = {k: np.asarray(v, dtype) for k, v in case.arrays.items()}
        rounded = {k: v.astype(np.float32) for k, v in stored.items()}
    whole = predict(replace(case, arrays=rounded), FLOAT32).copy()
    assert relative_error(predict(replace(case, arrays=stored), FLOAT32), whole) < 1e-5


def test_times_are_exact_in_bfloat16() -> None:
    """Neighbouring times, which bfloat16 cannot tell apart, give different predictions."""
    case = unet_case(0)
    net_inputs = {k: v for k, v in case.inputs.items() if k != "residuals"}
    net = UNet(case.config, case.arrays, BFLOAT16)
    one, other = (
        net(**(net_inputs | {"timesteps": np.full_like(case.inputs["timesteps"], time)})).copy()
        for time in (981, 982)
    )
    assert np.abs(one - other).max() > 0


def test_only_the_last_shapes_are_kept() -> None:
    case = vae_case(0)
    vae = Autoencoder(case.config, case.arrays, Settings(threads=1, shapes=2))
    channels = case.config.latent_channels
    for size in (2, 3, 4):
        vae.decode(np.zeros((1, channels, size, size), np.float32))
    assert len(vae._decode._graphs) == 2


def test_another_precision_is_refused() -> None:
    with pytest.raises(InputError, match="float32 or bfloat16"):
        Settings(dtype="float16")


def test_a_weight_of_another_width_names_the_layer() -> None:
    case = unet_case(0)
    name = "time_embedding.linear_2.weight"
    arrays = case.arrays | {name: case.arrays[name][:, :-1]}
    with pytest.raises(WeightsMismatchError, match=r"time_embedding\.linear_2"):
        predict(replace(case, arrays=arrays), FLOAT32)


def test_the_networks_import_no_torch() -> None:
    code = "import sys, sfumato.runtime.openvino.networks; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
