"""Which family a checkpoint belongs to, and what else a file may be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfumato import (
    StableDiffusionPipeline,
)
from sfumato.checkpoints.original.families import FAMILIES, family
from sfumato.checkpoints.original.loading import open_checkpoint
from sfumato.errors import (
    CheckpointError,
)
from tests.checkpoints.original.synthetic import (
    checkpoint_tensors,
    networks,
    predicting,
    small_configs,
    tiny_configs,
    write,
)

UNET = "model.diffusion_model."
CLIP = "cond_stage_model.transformer."


# Files that are something else


def test_families_are_told_apart_by_shapes_alone() -> None:
    for name in FAMILIES:
        made = networks({"unet": tiny_configs(name)["unet"]})
        tensors = checkpoint_tensors(made, extras=False)
        if "v2" in name:
            tensors = predicting(tensors, name.endswith("-v"))
        elif "upscaler" in name:
            tensors["cond_stage_model.model.transformer.resblocks.0.ln_1.weight"] = torch.zeros(4)
        checkpoint = open_checkpoint(tensors, component="unet")
        assert checkpoint.settled_family.name == name


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"control_model.time_embed.0.weight": (4, 4)}, "holds a ControlNet"),
        ({"noise_augmentor.time_embed.weight": (4,)}, "unCLIP"),
        ({f"{UNET}label_emb.0.0.weight": (4, 2048)}, "unCLIP"),
        (
            {"conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (4,)},
            "SDXL",
        ),
    ],
)
def test_checkpoints_of_other_pipelines_are_recognised(
    v1: dict[str, Tensor], extra: dict[str, tuple[int, ...]], words: str
) -> None:
    more = {name: torch.zeros(shape) for name, shape in extra.items()}
    with pytest.raises(CheckpointError, match=words):
        StableDiffusionPipeline.from_single_file({**v1, **more})


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)}, "a LoRA"),
        ({"*": (3, 768)}, "an embedding"),
        ({"encoder.down.0.block.0.conv1.weight": (4, 4, 3, 3), "decoder.conv_in.weight": (4,)},
         "an autoencoder"),
        ({"controlnet_cond_embedding.conv_in.weight": (4, 4)}, "a ControlNet"),
        ({"double_blocks.0.img_attn.qkv.weight": (4, 4)}, "a diffusion transformer"),
        ({"down_blocks.0.resnets.0.conv1.weight": (4, 4, 3, 3), "conv_in.weight": (4, 9, 3, 3)},
         "an inpainting network"),
        ({"something.weight": (4, 4)}, "no Stable Diffusion checkpoint that is recognised"),
    ],
)  # fmt: skip
def test_other_files_are_named_for_what_they_are(
    shapes: dict[str, tuple[int, ...]], words: str, tmp_path: Path
) -> None:
    path = write({n: torch.zeros(s) for n, s in shapes.items()}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=words):
        StableDiffusionPipeline.from_single_file(path)


def test_a_checkpoint_that_needs_more_than_text_is_loaded_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = networks(small_configs("stable-diffusion-v1-inpainting"))
    pipe = StableDiffusionPipeline.from_single_file(checkpoint_tensors(made))
    assert pipe.unet.config.in_channels == 9
    assert "made for StableDiffusionInpaintPipeline" in caplog.text


def test_the_shipped_configurations_are_complete() -> None:
    for name in FAMILIES:
        assert family(name).title and family(name).repositories
        assert family(name).scheduler["_class_name"].endswith("Scheduler")
