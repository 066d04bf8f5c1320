"""What acts of a network's adapters in a call, as factors and changed weights for a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from sfumato.adapters.families import LowRank
from sfumato.adapters.layer import AdaptedLayer, Mix, Terms, changed
from sfumato.adapters.state import state_of
from sfumato.checkpoints.arrays import StoredTensor
from sfumato.runtime.openvino.compiled import Array
from sfumato.runtime.openvino.torch_weights import stored

#: Ranks are filled up with zeros to a multiple of this, so that other adapters fit the same graph.
RANK_STEP = 16


@dataclass(frozen=True, eq=False)
class Changed:
    """Weights with adapters merged into them, by their full names."""

    arrays: Mapping[str, StoredTensor]


@dataclass(frozen=True, eq=False)
class Acting:
    """What acts in a call.

    Attributes:
        low_rank: factors by the path of their layer.
        changed: merged weights, or None.
        hindrance: why a graph cannot compute it, or None.
    """

    low_rank: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    changed: Changed | None = None
    hindrance: str | None = None


NOTHING = Acting()
#: The last of each network, with the mix that it was made of.
_last: WeakKeyDictionary[nn.Module, tuple[Mix, Acting]] = WeakKeyDictionary()


def acting(network: nn.Module, keywords: Mapping[str, Any] | None) -> Acting:
    """What acts at present.

    Args:
        network: with or without adapters.
        keywords: ``cross_attention_kwargs`` of the call, whose ``scale`` multiplies strengths.
    """
    state = state_of(network)
    if state is None:
        return NOTHING
    mix = state.current()
    if not isinstance(mix, Mix):
        return Acting(hindrance="each picture has adapters of its own")
    if mix.bare and state.fused:
        return Acting(hindrance="fused adapters are set aside")
    scale = (keywords or {}).get("scale")
    if scale is not None and scale != 1.0:
        mix = Mix(mix.layers, mix.scale * float(scale), mix.bare)
    found = _last.get(network)
    if found is None or not _same(found[0], mix):
        found = _last[network] = mix, _prepare(network, mix)
    return found[1]


def _same(a: Mix, b: Mix) -> bool:
    return a.layers is b.layers and a.scale == b.scale and a.bare == b.bare


@torch.no_grad()
def _prepare(network: nn.Module, mix: Mix) -> Acting:
    low_rank: dict[str, tuple[Array, Array]] = {}
    dense: dict[str, Terms] = {}
    for path in mix.layers:
        layer = network.get_submodule(path)
        terms = mix.terms(path)
        if terms and all(_is_factored(adapter, layer) for adapter, _ in terms):
            low_rank[path] = _factors(terms)
        elif terms:
            dense[path] = terms
    if not dense:
        return Acting(low_rank)
    arrays: dict[str, StoredTensor] = {}
    for path, terms in dense.items():
        layer = network.get_submodule(path)
        assert isinstance(layer, AdaptedLayer)
        made = changed(layer.weight, layer.bias, layer.slot.originals(layer), terms)
        for name, tensor in zip(("weight", "bias"), made, strict=True):
            if tensor is not None:
                arrays[f"{path}.{name}"] = stored(f"{path}.{name}", tensor)
    return Acting(low_rank, Changed(arrays))


def _is_factored(adapter: Any, layer: nn.Module) -> bool:
    """Whether an adapter is two matrices, on a layer that is one."""
    pointwise = isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride == (1, 1)
    )
    return (
        pointwise
        and isinstance(adapter, LowRank)
        and adapter.mid is None
        and adapter.bias_delta(None) is None
    )


def _factors(terms: Terms) -> tuple[Array, Array]:
    """All adapters of a layer in one pair, strengths multiplied in, filled up with zeros."""
    downs, ups = [], []
    for adapter, strength in terms:
        assert isinstance(adapter, LowRank)
        downs.append(adapter.down.detach().float().flatten(1).numpy())
        ups.append(adapter.up.detach().float().flatten(1).numpy() * (adapter.scale * strength))
    down, up = np.concatenate(downs), np.concatenate(ups, axis=1)
    spare = -len(down) % RANK_STEP
    return np.pad(down, ((0, spare), (0, 0))), np.pad(up, ((0, 0), (0, spare)))
