"""Writing adapters: as diffusers does, or under the names of kohya's scripts for other programs."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.adapters.files import METADATA_KEY, WEIGHT_NAME
from sfumato.adapters.keys import TEXT_ENCODER, UNET, split_key
from sfumato.adapters.parse import Leaves, Settings
from sfumato.adapters.state import Adapter
from sfumato.checkpoints.atomic import atomic_path
from sfumato.checkpoints.tensors import ready_to_write, save_safetensors
from sfumato.errors import AdapterError, InputError

FORMATS = ("diffusers", "kohya")

_KOHYA_START = {UNET: "lora_unet_", TEXT_ENCODER: "lora_te_"}
_KOHYA_LEAF = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_A.bias": "lora_down.bias",
    "lora_B.bias": "lora_up.bias",
    "lora_magnitude_vector": "dora_scale",
}
#: What only PEFT writes; the other programs have no names for it.
_ONLY_PEFT = frozenset({"oft_R.weight", "boft_R", "boft_s", "ia3_l"})

SaveFunction = Callable[[dict[str, Tensor], str], Any]


def save(
    folder: str | os.PathLike[str],
    layers: Mapping[str, Mapping[str, Tensor] | nn.Module | None],
    *,
    metadata: Mapping[str, Mapping[str, Any] | None] | None = None,
    weight_name: str | None = None,
    save_function: SaveFunction | None = None,
    safe_serialization: bool = True,
    format: str = "diffusers",
) -> Path:
    """Write a file of adapters into a folder, which is made when missing.

    Args:
        folder: where to.
        layers: network (``"unet"``, ``"text_encoder"``, or ``""`` for keys without a network) ->
            its tensors under the names of PEFT or diffusers, or a module with such parameters.
        metadata: network -> PEFT's configuration.
        weight_name: the file's name; default ``pytorch_lora_weights.safetensors`` or ``.bin``.
        save_function: writes the file instead: ``(tensors, path)``.
        safe_serialization: safetensors rather than a pickle.
        format: ``"diffusers"``, or ``"kohya"`` for A1111, ComfyUI and others.

    Returns:
        The path of the file.

    Raises:
        InputError: arguments are wrong or contradict each other.
        AdapterError: kohya's format has no name for a tensor.
        OSError: the disk refuses.
    """
    given = {network: part for network, part in layers.items() if part}
    if not given:
        names = " and ".join(f"`{network}_lora_layers`" for network in layers)
        raise InputError(f"You must pass at least one of {names}.")
    if format not in FORMATS:
        raise InputError(f"`format` has to be one of {', '.join(FORMATS)} but is {format!r}.")
    configs = {n: dict(values) for n, values in (metadata or {}).items() if values}
    if configs and not safe_serialization:
        raise InputError("`lora_adapter_metadata` cannot be specified without safe_serialization.")
    if os.path.isfile(folder):
        raise InputError(f"'{folder}' should be a folder, not a file.")
    tensors = {
        (f"{network}.{key}" if network else key): tensor
        for network, part in given.items()
        for key, tensor in (part.state_dict() if isinstance(part, nn.Module) else part).items()
    }
    texts = _metadata_texts(configs)
    if format == "kohya":
        tensors, texts = to_kohya(tensors, configs)
    ending = "safetensors" if safe_serialization else "bin"
    path = Path(folder) / (weight_name or f"{WEIGHT_NAME}.{ending}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if save_function is not None:
        save_function(tensors, str(path))
    elif safe_serialization:
        save_safetensors(tensors, path, texts)
    else:
        with atomic_path(path) as temporary:
            torch.save(ready_to_write(tensors), temporary)
    return path


def _metadata_texts(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    values = {
        (f"{network}.{key}" if network else key): sorted(v) if isinstance(v, set) else v
        for network, config in configs.items()
        for key, v in config.items()
    }
    if not values:
        return {}
    try:
        return {METADATA_KEY: json.dumps(values, indent=2, sort_keys=True)}
    except (TypeError, ValueError) as error:
        raise InputError(f"The metadata cannot be written as JSON: {error}.") from None


def to_kohya(
    tensors: Mapping[str, Tensor], configs: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under kohya's names with an alpha per layer, and kohya's metadata.

    Args:
        tensors: under the names of PEFT, diffusers or kohya.
        configs: network -> PEFT's configuration, which may hold alphas.

    Raises:
        AdapterError: a key names no layer, or a tensor has no name there.
    """
    layers: dict[tuple[str, str], Leaves] = {}
    for key, tensor in tensors.items():
        found = split_key(key)
        if found is None or (found.leaf == "weight" and f"{key[:-6]}on_input" not in tensors):
            raise AdapterError(f"{key[:200]} is no tensor of an adapter.")
        if found.leaf in _ONLY_PEFT:
            raise AdapterError(f"{key[:200]} has no form that kohya's scripts know.")
        place = found.network or UNET, _plain(found.layer)
        layers.setdefault(place, {})[found.leaf] = tensor
    result: dict[str, Tensor] = {}
    ranks: Counter[tuple[int, float]] = Counter()
    for (network, path), leaves in layers.items():
        settings = Settings.from_metadata((configs or {}).get(network, {}))
        name = _KOHYA_START.get(network, f"lora_{network}_") + path.replace(".", "_")
        rank = rank_of(leaves)
        if rank is not None:
            given = settings.alpha_of(path)
            alpha = float(leaves["alpha"]) if "alpha" in leaves else float(given or rank)
            alpha *= rank**0.5 if settings.root_of_rank else 1
            leaves = {**leaves, "alpha": torch.tensor(alpha)}
            ranks[rank, alpha] += 1
        if (magnitude := leaves.get("lora_magnitude_vector")) is not None:
            axes = leaves["lora_A.weight"].ndim if "lora_A.weight" in leaves else 2
            leaves["lora_magnitude_vector"] = magnitude.reshape(-1, *[1] * (axes - 1))
        for leaf, tensor in leaves.items():
            result[f"{name}.{_KOHYA_LEAF.get(leaf, leaf)}"] = tensor
    return result, _kohya_metadata(result, ranks)


def rank_of(leaves: Mapping[str, Tensor]) -> int | None:
    """The rank by which a layer's alpha is divided; None for families without."""
    for leaf in ("lora_A.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "a2.weight"):
        if leaf in leaves:
            return leaves[leaf].shape[0]
    return None


def _kohya_metadata(
    tensors: Mapping[str, Tensor], ranks: Counter[tuple[int, float]]
) -> dict[str, str]:
    if not ranks:
        return {}
    plain = all("lora_" in key or key.endswith(".alpha") for key in tensors)
    (rank, alpha), _ = ranks.most_common(1)[0]
    return {
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
    }


def _plain(layer: str) -> str:
    """A layer's path as the networks have it, from the spellings of diffusers."""
    layer = layer.replace(".processor", "")
    if "self_attn.to_" in layer:
        return re.sub(r"self_attn\.to_(q|k|v|out)$", r"self_attn.\1_proj", layer)
    return re.sub(r"(attn[12]\.to_out)$", r"\1.0", layer)


def exported(adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An adapter as PEFT would save it: tensors by ``<path>.<tensor>``, and its configuration.

    LoRA is what PEFT can read. Other families keep their names and bring their alphas along.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    settings = Settings.from_metadata(adapter.metadata)
    for path, leaves in adapter.tensors.items():
        is_lora = "lora_A.weight" in leaves and "scalar" not in leaves
        for leaf, tensor in leaves.items():
            if leaf == "alpha" and is_lora:
                continue
            if leaf == "dora_scale" and is_lora and _per_output(tensor, leaves):
                leaf, tensor = "lora_magnitude_vector", _peft_magnitude(tensor)
            tensors[f"{path}.{leaf}"] = tensor
        rank = rank_of(leaves)
        if rank is not None:
            own = float(leaves["alpha"]) if "alpha" in leaves else settings.alpha_of(path)
            ranks[path], alphas[path] = rank, float(rank) if own is None else own
    return tensors, _peft_metadata(adapter, ranks, alphas, tensors)


def _per_output(magnitude: Tensor, leaves: Mapping[str, Tensor]) -> bool:
    return magnitude.shape[:1] == leaves["lora_B.weight"].shape[:1]


def _peft_magnitude(magnitude: Tensor) -> Tensor:
    return magnitude.transpose(0, 1) if magnitude.ndim > 2 else magnitude.flatten()


def _peft_metadata(
    adapter: Adapter, ranks: dict[str, int], alphas: dict[str, float], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    if not ranks:
        return dict(adapter.metadata)
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        **adapter.metadata,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "rank_pattern": {path: r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {path: a for path, a in alphas.items() if a != alpha},
        "target_modules": sorted(adapter.tensors),
        "use_dora": any(key.endswith(".lora_magnitude_vector") for key in tensors),
        "lora_bias": any(key.endswith(".lora_B.bias") for key in tensors),
    }
