"""The layers of Stable Diffusion's networks, for files that are read without a network at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from sfumato.adapters.state import layers_of
from sfumato.checkpoints.fitting import build_without_memory
from sfumato.models.unet import UNet2DConditionModel
from sfumato.text.clip import CLIPTextModel

_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")

#: At least as many as any text encoder of Stable Diffusion has.
_TEXT_LAYERS = 32


def is_kohya(keys: Iterable[str]) -> bool:
    """Whether all keys begin as those of kohya's scripts."""
    return all(key.startswith(_KOHYA) for key in keys)


def standard_layers(unet_config: Mapping[str, Any] | None = None) -> dict[str, list[str]]:
    """Network -> paths of its layers; of Stable Diffusion's UNet, or of one so configured."""
    if unet_config is None:
        return _default_layers()
    unet = build_without_memory(UNet2DConditionModel, unet_config)
    return {**_default_layers(), "unet": list(layers_of(unet))}


@cache
def _default_layers() -> dict[str, list[str]]:
    unet = build_without_memory(UNet2DConditionModel, {})
    text = build_without_memory(CLIPTextModel, {"num_hidden_layers": _TEXT_LAYERS})
    return {"unet": list(layers_of(unet)), "text_encoder": list(layers_of(text))}
