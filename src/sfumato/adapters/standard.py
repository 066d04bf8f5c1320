"""The layers of Stable Diffusion's networks, for files that are read without a network at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from sfumato.adapters.keys import TEXT_ENCODER, UNET
from sfumato.adapters.names import NameTable, name_table
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


def standard_tables(unet_config: Mapping[str, Any] | None = None) -> dict[str, NameTable]:
    """The names of Stable Diffusion's UNet, or of one so configured, and of its text encoder."""
    if unet_config is None:
        return _default_tables()
    unet = build_without_memory(UNet2DConditionModel, unet_config)
    return {**_default_tables(), UNET: name_table(UNET, layers_of(unet), unet.config)}


@cache
def _default_tables() -> dict[str, NameTable]:
    unet = build_without_memory(UNet2DConditionModel, {})
    text = build_without_memory(CLIPTextModel, {"num_hidden_layers": _TEXT_LAYERS})
    return {
        UNET: name_table(UNET, layers_of(unet), unet.config),
        TEXT_ENCODER: name_table(TEXT_ENCODER, layers_of(text)),
    }
