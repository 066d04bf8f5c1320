"""ControlNets as their authors publish them: one file in the layout of the original code.

The first half of a UNet has the names that it has in a checkpoint; beside it are the layers for
the picture (``input_hint_block``, numbered as in `torch.nn.Sequential`, every second one has
weights) and the convolutions that begin as zero. `ControlNetModel.from_single_file` comes here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch

from sfumato.checkpoints.files import checked_path
from sfumato.checkpoints.fitting import Shape, assign, build_without_memory, check_fit
from sfumato.checkpoints.original.families import family
from sfumato.checkpoints.original.keys import unet_keys
from sfumato.checkpoints.original.sizes import unet_sizes
from sfumato.checkpoints.source import open_source, shapes_of
from sfumato.errors import WeightsMismatchError
from sfumato.models.controlnet import ControlNetConfig, ControlNetModel

PREFIXES = ("control_model.", "")
_HINT = re.compile(r"input_hint_block\.(\d{1,3})\.(weight|bias)")
_ZERO = re.compile(r"zero_convs\.(\d{1,3})\.0\.(weight|bias)")
_MIDDLE = re.compile(r"middle_block_out\.0\.(weight|bias)")


def load_controlnet(
    path: str | PathLike[str], *, dtype: torch.dtype | None = torch.float32, **fields: Any
) -> ControlNetModel:
    """Load a ControlNet from one file, in the original layout or with today's names.

    Args:
        path: ``.safetensors``, ``.pth`` or ``.ckpt``.
        dtype: of the weights; None keeps the file's.
        fields: of the configuration, to override.

    Raises:
        CheckpointError: the file is damaged or unsafe, or holds something else.
        ConfigError: a field is wrong.
    """
    source = open_source(checked_path(path))
    shapes = shapes_of(source)
    prefix = next((p for p in PREFIXES if f"{p}input_hint_block.0.weight" in shapes), None)
    if prefix is None:
        raise WeightsMismatchError(
            f"{source.where} is no ControlNet in the original layout.",
            hint="For a folder in diffusers' layout there is ControlNetModel.from_pretrained.",
        )
    own = {name.removeprefix(prefix): s for name, s in shapes.items() if name.startswith(prefix)}
    config = ControlNetConfig.from_dict({**controlnet_sizes(own), **fields})
    names = controlnet_names(own, config)
    tensors = source.read([prefix + old for old in names], dtype=dtype)
    renamed = {names[old.removeprefix(prefix)]: tensor for old, tensor in tensors.items()}
    model = build_without_memory(ControlNetModel, config)
    check_fit(model, {name: tuple(t.shape) for name, t in renamed.items()}, source.where)
    assign(model, renamed, source.where)
    return model


def controlnet_sizes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The configuration that the shapes tell; what they cannot is as in the UNet's family."""
    wide = any(
        name.endswith("attn2.to_k.weight") and shape[-1:] == (1024,)
        for name, shape in shapes.items()
    )
    base = family("stable-diffusion-v2" if wide else "stable-diffusion-v1").unet
    known = set(ControlNetConfig.__dataclass_fields__)
    sizes = unet_sizes({**shapes, "out.2.weight": (4, 1, 3, 3)}, base)
    hints = _hint_layers(shapes)
    layers = sizes["layers_per_block"]
    return {
        **{name: value for name, value in sizes.items() if name in known},
        "layers_per_block": layers[0] if isinstance(layers, list) else layers,
        "conditioning_channels": _kernel(shapes, hints[0])[1],
        "conditioning_embedding_out_channels": [
            _kernel(shapes, number)[0] for number in hints[:-1:2]
        ],
    }


def _kernel(shapes: Mapping[str, Shape], number: int) -> Shape:
    """The shape of a layer for the picture."""
    name = f"input_hint_block.{number}.weight"
    shape = shapes.get(name, ())
    if len(shape) != 4:
        raise WeightsMismatchError(
            f"{name} has the shape {list(shape)} but should be a convolution's."
            if name in shapes
            else f"The file has no {name}."
        )
    return shape


def _hint_layers(shapes: Mapping[str, Shape]) -> list[int]:
    matches = (_HINT.fullmatch(name) for name in shapes)
    return sorted({int(match[1]) for match in matches if match})


def controlnet_names(shapes: Mapping[str, Shape], config: ControlNetConfig) -> dict[str, str]:
    """Original names to diffusers' names; others are left out."""
    unet = unet_keys(config.as_unet())
    hints = _hint_layers(shapes)
    inner = {number: f"blocks.{index}" for index, number in enumerate(hints[1:-1])}
    places = {hints[0]: "conv_in", **inner, hints[-1]: "conv_out"}
    names: dict[str, str] = {}
    for name in shapes:
        if match := _HINT.fullmatch(name):
            names[name] = f"controlnet_cond_embedding.{places[int(match[1])]}.{match[2]}"
        elif match := _ZERO.fullmatch(name):
            names[name] = f"controlnet_down_blocks.{match[1]}.{match[2]}"
        elif match := _MIDDLE.fullmatch(name):
            names[name] = f"controlnet_mid_block.{match[1]}"
        elif found := unet.to_diffusers(name):
            names[name] = found[0][0]
    return names
