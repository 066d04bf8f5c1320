"""ControlNets in the original layout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfumato.checkpoints.original.controlnet import load_controlnet
from sfumato.checkpoints.original.keys import unet_keys
from sfumato.errors import CheckpointError
from sfumato.models.controlnet import ControlNetModel
from tests.pipelines.tiny import tiny_controlnet

HINTS = {"conv_in": 0, "conv_out": 14, **{f"blocks.{i}": 2 + 2 * i for i in range(6)}}


def original_name(net: ControlNetModel, name: str) -> str:
    """The name in the original code, written down by hand."""
    if match := re.fullmatch(r"controlnet_cond_embedding\.([\w.]+)\.(weight|bias)", name):
        return f"input_hint_block.{HINTS[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"controlnet_down_blocks\.(\d+)\.(weight|bias)", name):
        return f"zero_convs.{match[1]}.0.{match[2]}"
    if match := re.fullmatch(r"controlnet_mid_block\.(weight|bias)", name):
        return f"middle_block_out.0.{match[1]}"
    found = unet_keys(net.config.as_unet()).to_original(name)
    assert found is not None
    return found[0]


@pytest.mark.parametrize("prefix", ["", "control_model."])
@pytest.mark.parametrize("linear", [False, True])
def test_a_file_in_the_original_layout_gives_the_same_network(
    prefix: str, linear: bool, tmp_path: Path
) -> None:
    net = tiny_controlnet(
        3,
        conditioning_embedding_out_channels=(4, 8, 12, 16),
        use_linear_projection=linear,
        cross_attention_dim=1024 if linear else 32,
        attention_head_dim=8,
    )
    state = {prefix + original_name(net, k): v for k, v in net.state_dict().items()}
    if prefix:
        state["model.diffusion_model.out.2.weight"] = torch.zeros(4, 4)
    assert {f"{prefix}zero_convs.0.0.weight", f"{prefix}input_hint_block.12.bias"} <= set(state)
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "control.safetensors")
    loaded = ControlNetModel.from_single_file(tmp_path / "control.safetensors")
    for name in ("block_out_channels", "down_block_types", "conditioning_embedding_out_channels"):
        assert loaded.config[name] == net.config[name]
    assert loaded.config.use_linear_projection is linear
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in net.state_dict().items())
    half = load_controlnet(tmp_path / "control.safetensors", dtype=torch.float16)
    assert half.dtype == torch.float16


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no ControlNet"):
        ControlNetModel.from_single_file(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_hint_block.0.weight": torch.zeros(4)}, r"shape \[4\] but should be a convol"),
        ({"input_hint_block.4.weight": torch.zeros(())}, r"input_hint_block\.4\.weight has the"),
        ({"input_hint_block.4.weight": None}, r"has no input_hint_block\.4\.weight"),
    ],
    ids=["vector", "number", "gone"],
)
def test_damaged_layers_for_the_picture_are_named(
    change: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    net = tiny_controlnet(conditioning_embedding_out_channels=(4, 8, 12, 16))
    state = {original_name(net, k): v for k, v in net.state_dict().items()} | change
    save_file({k: v for k, v in state.items() if v is not None}, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=message):
        ControlNetModel.from_single_file(tmp_path / "c.safetensors")
