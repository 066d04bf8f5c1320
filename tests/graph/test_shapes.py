"""Names and shapes of weights by configuration are those of the layers that torch builds."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from sfumato.graph.shapes import (
    autoencoder_shapes,
    clip_text_shapes,
    clip_vision_shapes,
    safety_checker_shapes,
)
from sfumato.graph.unet_shapes import controlnet_shapes, unet_shapes
from sfumato.models import unet_stages
from sfumato.models.controlnet import ControlNetModel
from sfumato.models.unet import UNet2DConditionModel
from sfumato.safety.checker import StableDiffusionSafetyChecker
from tests.graph.cases import kinds, text_case, vae_case, vision_case
from tests.parity.unet_configs import random_config
from tests.pipelines.tiny import UNET


def of(network: torch.nn.Module) -> dict[str, Any]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def of_arrays(arrays: dict[str, Any], projection: str) -> dict[str, Any]:
    return {name: array.shape for name, array in arrays.items() if name != f"{projection}.weight"}


@pytest.mark.parametrize("first", range(0, 80, 10))
def test_those_of_random_unets(first: int) -> None:
    for seed in range(first, first + 10):
        config = random_config(random.Random(seed))
        if not set(kinds(config)) <= set(unet_stages.KINDS):
            continue  # computed by torch alone
        with torch.device("meta"):
            network = UNet2DConditionModel(**config)
        assert unet_shapes(network.config) == of(network), seed


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"layers_per_block": 2, "use_linear_projection": True, "conditioning_channels": 1},
        {"mid_block_type": "UNetMidBlock2D", "conditioning_embedding_out_channels": (8,)},
        {"attention_head_dim": (3, 5), "class_embed_type": "timestep", "in_channels": 9},
    ],
)
def test_those_of_controlnets(fields: dict[str, Any]) -> None:
    known = set(ControlNetModel.config_class.__dataclass_fields__)
    shared = {name: value for name, value in UNET.items() if name in known}
    with torch.device("meta"):
        network = ControlNetModel(**{**shared, **fields})
    assert controlnet_shapes(network.config) == of(network)


@pytest.mark.parametrize("seed", range(6))
def test_those_of_other_networks(seed: int) -> None:
    vae, text, vision = vae_case(seed), text_case(seed), vision_case(seed)
    assert autoencoder_shapes(vae.config) == of_arrays(vae.arrays, "")
    assert clip_text_shapes(text.config) == of_arrays(text.arrays, "text_projection")
    assert clip_vision_shapes(vision.config) == of_arrays(vision.arrays, "visual_projection")


def test_those_of_a_safety_checker() -> None:
    vision = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    with torch.device("meta"):
        checker = StableDiffusionSafetyChecker(vision_config=vision, projection_dim=8)
    assert safety_checker_shapes(checker.config) == of(checker)
