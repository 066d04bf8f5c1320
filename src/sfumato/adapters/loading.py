"""From a file or a dictionary to adapters on networks: all of it, or an error and no change."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from sfumato.adapters.files import AdapterFile, metadata_for
from sfumato.adapters.guess import listed, what_adapter_looks_like
from sfumato.adapters.keys import split_layer
from sfumato.adapters.names import NameTable, name_table
from sfumato.adapters.network import (
    activate,
    add,
    all_or_nothing,
    check_name,
    remove,
    require_single_projections,
)
from sfumato.adapters.parse import Settings, Sorted, build_layers, sort_tensors
from sfumato.adapters.state import Adapter, adapters_of, layers_of
from sfumato.errors import AdapterError, InputError

logger = logging.getLogger(__name__)

#: No log message lists more keys.
_MOST_LISTED = 10_000


def load(
    networks: Mapping[str, nn.Module],
    file: AdapterFile,
    name: str | None = None,
    *,
    replace: bool = False,
    alphas: Mapping[str, float] | None = None,
    elsewhere: Collection[str] = (),
    required: bool = True,
) -> str | None:
    """Put a file's adapters on networks. When anything fails, the networks are as before.

    Keys that cannot be used are logged one by one.

    Args:
        networks: ``"unet"`` or ``"text_encoder"`` -> the network.
        file: see `read_adapter_file`.
        name: of the adapter; default ``default_0``, ``default_1``, ...
        replace: take the place of the adapter of that name.
        alphas: see `sfumato.adapters.parse.sort_tensors`.
        elsewhere: networks whose tensors are passed over in silence.
        required: a file with nothing for these networks is an error.

    Returns:
        The name, or None when there was nothing for these networks.

    Raises:
        AdapterError: nothing in the file fits, or something fits half; the message says why.
        InputError: the name is taken.
    """
    name = free_name(networks.values()) if name is None else name
    if not isinstance(name, str) or not name:
        raise InputError(f"`adapter_name` has to be a text but is {str(name)[:80]!r}.")
    tables = {
        key: name_table(key, layers_of(network), getattr(network, "config", None))
        for key, network in networks.items()
    }
    found = sort_tensors(
        _without(file.tensors, elsewhere), tables, _without(alphas or {}, elsewhere)
    )
    if not found.networks:
        if required:
            raise _nothing_fits(file, found)
        return None
    adapters = _build(networks, file, found)
    if found.unknown:
        logger.warning(
            "%s: %d of %d tensors were left out:%s",
            file.where,
            len(found.unknown),
            len(file.tensors),
            listed(found.unknown, _MOST_LISTED),
        )
    if found.embeddings:
        logger.warning(
            "%s brings textual inversions (%s), which `bundled_embeddings` hands out.",
            file.where,
            ", ".join(found.embeddings)[:200],
        )
    _check_names(networks.values(), name, replace)
    for key in adapters:
        require_single_projections(networks[key])
    with all_or_nothing(networks.values()):
        for key, network in networks.items():
            there = name in adapters_of(network)
            if key in adapters:
                add(network, name, adapters[key], replace=there, alone=not replace)
            elif replace:
                remove(network, [name])
            else:
                activate(network, [])  # the new adapter alone acts
    return name


def _check_names(networks: Collection[nn.Module], name: str, replace: bool) -> None:
    if not replace or all(name not in adapters_of(network) for network in networks):
        for network in networks:
            check_name(network, name, replace=replace)


def _build(
    networks: Mapping[str, nn.Module], file: AdapterFile, found: Sorted
) -> dict[str, Adapter]:
    adapters: dict[str, Adapter] = {}
    wrong: dict[str, str] = {}
    total = 0
    for key, tensors in found.networks.items():
        shapes = {
            path: layer.weight.shape
            for path, layer in layers_of(networks[key]).items()
            if isinstance(layer.weight, Tensor)
        }
        metadata = metadata_for(file.metadata, key)
        layers, bad = build_layers(tensors, shapes, Settings.from_metadata(metadata))
        adapters[key] = Adapter(layers, tensors, metadata)
        wrong |= {f"{key}.{path}": reason for path, reason in bad.items()}
        total += len(tensors)
    if wrong:
        guess = what_adapter_looks_like(file.tensors)
        raise AdapterError(
            f"{file.where} does not fit in {len(wrong)} of {total} layers:{listed(wrong, 5)}.",
            hint=f"The file looks like {guess}." if guess else None,
        )
    return adapters


def free_name(networks: Iterable[nn.Module]) -> str:
    """``default_<n>``, the first from the number of adapters on that is not taken."""
    loaded = [adapters_of(network) for network in networks]
    taken = {name for names in loaded for name in names}
    number = max((len(names) for names in loaded), default=0)
    while f"default_{number}" in taken:
        number += 1
    return f"default_{number}"


def bundled_embeddings(file: AdapterFile) -> dict[str, Tensor]:
    """Textual inversions that came with the adapters, by token."""
    return sort_tensors(file.tensors, {}).embeddings


def canonical_state_dict(
    file: AdapterFile, tables: Mapping[str, NameTable]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A file's tensors under this package's names (PEFT's in diffusers), and the alphas apart.

    Args:
        file: in any naming.
        tables: network -> its layers.
    """
    found = sort_tensors(file.tensors, tables)
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for network, parts in found.networks.items():
        for path, leaves in parts.items():
            for leaf, tensor in leaves.items():
                if leaf == "alpha":
                    alphas[f"{network}.{path}.alpha"] = float(tensor)
                else:
                    tensors[f"{network}.{path}.{leaf}"] = tensor
    return tensors | {
        key: file.tensors[key] for key in found.unknown if key in file.tensors
    }, alphas


def _without(values: Mapping[str, Any], elsewhere: Collection[str]) -> dict[str, Any]:
    return {key: v for key, v in values.items() if split_layer(key)[0] not in elsewhere}


def _nothing_fits(file: AdapterFile, found: Sorted) -> AdapterError:
    if not file.tensors:
        return AdapterError(f"{file.where} is empty: it holds no tensors.")
    guess = what_adapter_looks_like(file.tensors)
    return AdapterError(
        f"Invalid LoRA checkpoint: none of the {len(file.tensors)} tensors of {file.where} belongs"
        f" to a layer of this model:{listed(found.unknown, 5)}.",
        hint=f"The file looks like {guess}." if guess else None,
    )
