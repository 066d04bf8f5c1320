"""Networks into one file in the original layout, for programs that read nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.checkpoints.files import checked_path, shown
from sfumato.checkpoints.folders import state_to_save
from sfumato.checkpoints.original import keys, unusual
from sfumato.checkpoints.original.conditions import condition_keys, condition_kind
from sfumato.checkpoints.original.families import FAMILIES, family
from sfumato.checkpoints.tensors import cast, save_safetensors
from sfumato.errors import InputError
from sfumato.quantization.tensor import plain

_IMPLEMENTATION = "https://github.com/CompVis/stable-diffusion"
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}

#: The architecture of UNets that know no text, in the metadata.
_WITHOUT_TEXT = "latent-diffusion"

#: Prefixes in a whole checkpoint. Alone, autoencoders and text encoders have none.
_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "conditioner": "cond_stage_model.",
}
_CLIP_PREFIX = "cond_stage_model.transformer."
_OPEN_CLIP_PREFIX = "cond_stage_model.model."


def save_original(
    networks: Mapping[str, nn.Module],
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    prediction_type: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write networks to one safetensors file in the original layout, whole or not at all.

    Several networks get the prefixes of a whole checkpoint; an autoencoder or a text encoder alone
    gets none, as such files have in the wild.

    Args:
        networks: some of ``unet``, ``vae``, ``text_encoder`` and ``conditioner``.
        path: the file; it should end in ``.safetensors``.
        dtype: floating-point tensors are converted to it.
        prediction_type: written into the metadata, where `from_single_file` finds it.
        metadata: further text beside the tensors.

    Raises:
        InputError: there is nothing to save, the name ends otherwise, or a network is none of
            Stable Diffusion's.
        CheckpointError: a network has a tensor that the original layout has no place for.
        OSError: the disk refuses.
    """
    target = checked_path(path)
    if target.suffix != ".safetensors":
        raise InputError(f"{shown(target)} has to end in .safetensors, the format it is saved in.")
    if not networks:
        raise InputError("There is no network to save.")
    tensors: dict[str, Tensor] = {}
    for component, network in networks.items():
        tensors |= original_tensors(component, network, alone=len(networks) == 1)
    device = torch.device("cpu")
    texts = _metadata(networks, target, prediction_type) | unusual.note(networks, tensors)
    texts |= metadata or {}
    save_safetensors({n: cast(t, dtype, device) for n, t in tensors.items()}, target, texts)


def original_tensors(
    component: str, network: nn.Module, *, alone: bool = False
) -> dict[str, Tensor]:
    """A network's tensors under their names in the original layout, quantised ones plain.

    Raises:
        InputError: the network is none of Stable Diffusion's.
        CheckpointError: a tensor has no place in that layout.
    """
    state = {name: plain(tensor) for name, tensor in state_to_save(network).items()}
    config: Any = getattr(network, "config", None)
    if component == "text_encoder":
        return _text_tensors(state, config, alone)
    if component not in _PREFIXES:
        raise InputError(f"The original layout has no place for a component {component!r}.")
    if component == "conditioner":
        rules = condition_keys(condition_kind(state))
    else:
        rules = (keys.unet_keys if component == "unet" else keys.autoencoder_keys)(config)
    prefix = "" if alone and component == "vae" else _PREFIXES[component]
    return {prefix + k: v for k, v in rules.tensors_to_original(state).items()}


def _text_tensors(state: Mapping[str, Tensor], config: Any, alone: bool) -> dict[str, Tensor]:
    """CLIP of 1.x as transformers has it; OpenCLIP of 2.x, which its activation tells."""
    plain = {k: v for k, v in state.items() if not k.endswith("position_ids")}
    if config.hidden_act == "gelu":
        renamed = keys.open_clip_keys().tensors_to_original(plain)
        prefix = "" if alone else _OPEN_CLIP_PREFIX
        return {prefix + k: v for k, v in renamed.items()}
    prefix = "" if alone else _CLIP_PREFIX
    renamed = keys.clip_keys().tensors_to_original(plain)
    positions = torch.arange(config.max_position_embeddings)[None]
    return {
        f"{prefix}text_model.embeddings.position_ids": positions,
        **{prefix + k: v for k, v in renamed.items()},
    }


def _metadata(
    networks: Mapping[str, nn.Module], path: Path, prediction_type: str | None
) -> dict[str, str]:
    """The keys that the ``modelspec`` standard asks for, of a whole checkpoint."""
    if "unet" not in networks:
        return {}
    unet: Any = networks["unet"].config
    texts = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _architecture(unet, prediction_type),
        "modelspec.implementation": _IMPLEMENTATION,
        "modelspec.title": path.stem,
    }
    if isinstance(unet.sample_size, int):
        vae: Any = networks["vae"].config if "vae" in networks else None
        factor = 8 if vae is None else 2 ** (len(vae.block_out_channels) - 1)
        size = unet.sample_size * factor
        texts["modelspec.resolution"] = f"{size}x{size}"
    if prediction_type in _PREDICTIONS:
        texts["modelspec.prediction_type"] = _PREDICTIONS[prediction_type]
    return texts


def _architecture(unet: Any, prediction_type: str | None) -> str:
    """The family with these input channels and this width of the text; else that of 1.x or 2.x."""
    if "use_linear_projection" not in unet:
        return _WITHOUT_TEXT
    newer = bool(unet.use_linear_projection)
    known = [family(name) for name in FAMILIES]
    fitting = [
        f
        for f in known
        if f.unet["in_channels"] == unet.in_channels
        and bool(f.unet.get("use_linear_projection")) == newer
    ] or [f for f in known if bool(f.unet.get("use_linear_projection")) == newer]
    wanted = prediction_type or fitting[0].scheduler["prediction_type"]
    exact = (f for f in fitting if f.scheduler["prediction_type"] == wanted)
    return next(exact, fitting[0]).modelspec
