"""The networks of the graph stay free of torch, and say what they cannot do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sfumato.graph
from sfumato.errors import ConfigError, InputError, WeightsMismatchError
from sfumato.graph.clip_text import clip_text
from sfumato.graph.numpy_ops import NumpyOps
from sfumato.graph.ops import Ops
from sfumato.graph.unet import supported_stages
from sfumato.graph.weights import Weights
from sfumato.models.unet_config import UNet2DConditionConfig
from sfumato.text.clip_config import CLIPTextConfig

OPS: Ops[Any] = NumpyOps()


def test_no_module_of_the_graph_imports_torch() -> None:
    folder = Path(sfumato.graph.__path__[0])
    names = [f"sfumato.graph.{path.stem}" for path in folder.glob("*.py")]
    assert len(names) > 8
    code = f"""
import sys, importlib
for name in {names!r}:
    importlib.import_module(name)
loaded = {{"torch", "jax", "openvino", "scipy"}} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_blocks_that_torch_alone_computes_are_refused_by_name() -> None:
    config = UNet2DConditionConfig.from_dict(
        {
            "down_block_types": ["KDownBlock2D", *["KCrossAttnDownBlock2D"] * 2],
            "up_block_types": [*["KCrossAttnUpBlock2D"] * 2, "KUpBlock2D"],
            "block_out_channels": [32, 64, 64],
            "layers_per_block": 1,
            "attention_head_dim": 8,
            "cross_attention_dim": 16,
            "mid_block_type": None,
            "norm_num_groups": None,
            "act_fn": "gelu",
            "resnet_time_scale_shift": "scale_shift",
            "time_embedding_type": "fourier",
        }
    )
    with pytest.raises(ConfigError, match=r"KCrossAttnDownBlock2D.*torch alone"):
        supported_stages(config)


def test_a_missing_weight_is_named_in_full() -> None:
    weights = Weights({"text_model.embeddings.token_embedding.weight": np.zeros((9, 8))})
    config = CLIPTextConfig(vocab_size=9, hidden_size=8, num_attention_heads=2)
    with pytest.raises(WeightsMismatchError, match=r"position_embedding\.weight"):
        clip_text(OPS, weights, config, np.zeros((1, 3), np.int64))


def test_more_tokens_than_positions_are_refused() -> None:
    config = CLIPTextConfig(vocab_size=9, hidden_size=8, num_attention_heads=2)
    with pytest.raises(InputError, match="78 tokens"):
        clip_text(OPS, Weights({}), config, np.zeros((1, 78), np.int64))


def test_a_weight_of_another_width_names_the_layer() -> None:
    weights = Weights({"a.weight": np.zeros((4, 3))})
    with pytest.raises(WeightsMismatchError, match="'a' takes 3 channels but is given 5"):
        OPS.linear(np.zeros((1, 5), np.float32), weights / "a")
