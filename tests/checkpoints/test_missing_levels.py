"""Files of networks made with transformers 5, which leaves out a level of the names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.safety.checker import StableDiffusionSafetyChecker
from sfumato.text.clip import CLIPTextModel
from tests.checkpoints.tiny import TEXT

VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
          "num_attention_heads": 2, "image_size": 16, "patch_size": 8}  # fmt: skip


@pytest.mark.parametrize(
    ("network", "level"),
    [
        (CLIPTextModel(TEXT), "text_model."),
        (
            StableDiffusionSafetyChecker(vision_config=VISION, projection_dim=8),
            "vision_model.vision_model.",
        ),
    ],
    ids=["text encoder", "safety checker"],
)
def test_a_level_that_is_left_out_is_put_back(network: Any, level: str, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    less = level.removesuffix("text_model.").removesuffix("vision_model.")
    short = {name.replace(level, less): tensor for name, tensor in state.items()}
    assert sum(name not in state for name in short) >= 20
    save_file(short, path, {"format": "pt"})
    loaded = type(network).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())
