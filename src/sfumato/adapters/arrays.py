"""Adapters merged into weights that are arrays, for backends without layers of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sfumato.adapters.files import metadata_for, read_adapter_file
from sfumato.adapters.guess import what_adapter_looks_like
from sfumato.adapters.names import name_table
from sfumato.adapters.parse import Settings, build_layers, sort_tensors
from sfumato.errors import AdapterError

Array = np.ndarray[Any, Any]


def merged_weights(
    networks: Mapping[str, Mapping[str, Any]],
    configs: Mapping[str, Any],
    source: Any,
    strength: float = 1.0,
    **options: Any,
) -> dict[str, dict[str, Array]]:
    """The weights that a file's adapters change, changed.

    Args:
        networks: ``"unet"`` and ``"text_encoder"`` -> weights by diffusers' names, of anything that
            NumPy makes an array of.
        configs: of these networks.
        source: a file, a folder, or a name on the hub.
        strength: how much of the adapters.
        options: of `read_adapter_file`.

    Returns:
        For each network the changed weights alone, float32.

    Raises:
        AdapterError: nothing in the file fits, or something fits half; the message says why.
        CheckpointError: (an ``OSError``) the file is damaged or unsafe.
    """
    file = read_adapter_file(source, **options)
    shapes = {
        network: {
            name.removesuffix(".weight"): torch.Size(np.shape(array))
            for name, array in arrays.items()
            if name.endswith(".weight")
        }
        for network, arrays in networks.items()
    }
    tables = {name: name_table(name, paths, configs[name]) for name, paths in shapes.items()}
    found = sort_tensors(file.tensors, tables)
    if not found.networks:
        guess = what_adapter_looks_like(file.tensors)
        raise AdapterError(
            f"None of the {len(file.tensors)} tensors of {file.where} belongs to a layer of this"
            " model.",
            hint=f"The file looks like {guess}." if guess else None,
        )
    changed: dict[str, dict[str, Array]] = {}
    for network, tensors in found.networks.items():
        settings = Settings.from_metadata(metadata_for(file.metadata, network))
        layers, wrong = build_layers(tensors, shapes[network], settings)
        if wrong:
            path, reason = next(iter(wrong.items()))
            raise AdapterError(
                f"{file.where} does not fit in {len(wrong)} layers, such as {network}.{path}:"
                f" {reason}."
            )
        changed[network] = {}
        for path, adapter in layers.items():
            weight = _tensor(networks[network][f"{path}.weight"])
            changed[network][f"{path}.weight"] = adapter.added(weight, weight, strength).numpy()
            given = networks[network].get(f"{path}.bias")
            bias = None if given is None else _tensor(given)
            delta = adapter.bias_delta(bias)
            if delta is not None and bias is not None:
                changed[network][f"{path}.bias"] = (bias + strength * delta).numpy()
    return changed


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32))
