"""New low-rank adapters to be trained: parameters beside the layers' own, as PEFT names them.

``to_q`` gets the children ``lora_A.<name>`` and ``lora_B.<name>``, so an optimizer finds them among
the network's parameters. They act like loaded adapters, and are saved by the same functions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sfumato.adapters.families import LowRank
from sfumato.adapters.network import add, check_name
from sfumato.adapters.state import Adapter, layers_of
from sfumato.errors import InputError

_DEFAULT_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


def add_trainable(network: nn.Module, name: str, config: Mapping[str, Any] | Any) -> None:
    """Give a network a LoRA with trainable parameters, and freeze everything else.

    Args:
        network: a UNet or a text encoder.
        name: of the adapter, without dots.
        config: PEFT's ``LoraConfig``, or a mapping or object with some of its fields: ``r`` (8),
            ``lora_alpha`` (8), ``target_modules`` (ends of paths or one pattern; the attention's
            projections), ``rank_pattern`` and ``alpha_pattern``, ``use_rslora``, and
            ``init_lora_weights`` (True draws the first factor as a linear layer's weights,
            "gaussian" from a normal distribution; the second one is 0, so that nothing changes).

    Raises:
        InputError: the name is taken, a field asks for what there is not, or no layer is meant.
    """
    if not isinstance(name, str) or not name or "." in name:
        raise InputError(f"`adapter_name` has to be a text without dots but is {str(name)[:80]!r}.")
    check_name(network, name)
    fields = _Fields(config)
    chosen = {
        path: layer
        for path, layer in layers_of(network).items()
        if isinstance(layer, nn.Linear | nn.Conv2d) and fields.targets(path)
    }
    if not chosen:
        raise InputError(f"No layer of the network ends in one of {fields.target_modules!r}.")
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    layers = {path: _attach(layer, name, path, fields) for path, layer in chosen.items()}
    tensors = {path: _tensors(layer) for path, layer in layers.items()}
    add(network, name, Adapter(layers, tensors, fields.metadata()), alone=True)


class _Fields:
    """The fields of a configuration that have an effect here."""

    def __init__(self, config: Any) -> None:
        def get(field: str, default: Any) -> Any:
            if isinstance(config, Mapping):
                return config.get(field, default)
            return getattr(config, field, default)

        self.rank = _whole(get("r", 8), "r")
        self.alpha = get("lora_alpha", 8)
        self.target_modules = get("target_modules", None) or list(_DEFAULT_TARGETS)
        self.ranks = dict(get("rank_pattern", None) or {})
        for rank in self.ranks.values():
            _whole(rank, "rank_pattern")
        self.alphas = dict(get("alpha_pattern", None) or {})
        self.root_of_rank = bool(get("use_rslora", False))
        self.init = get("init_lora_weights", True)
        if get("use_dora", False) or get("lora_bias", False):
            raise InputError("Adapters with `use_dora` or `lora_bias` can be loaded, not trained.")
        if self.init not in (True, "gaussian"):
            raise InputError(
                f"`init_lora_weights` has to be True or 'gaussian', not {self.init!r}."
            )

    def targets(self, path: str) -> bool:
        if isinstance(self.target_modules, str):
            return re.fullmatch(self.target_modules, path) is not None
        return any(path == end or path.endswith(f".{end}") for end in self.target_modules)

    def rank_of(self, path: str) -> int:
        return _matching(self.ranks, path, self.rank)

    def scale_of(self, path: str) -> float:
        rank = self.rank_of(path)
        alpha = float(_matching(self.alphas, path, self.alpha))
        return alpha / (math.sqrt(rank) if self.root_of_rank else rank)

    def metadata(self) -> dict[str, Any]:
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "rank_pattern": self.ranks,
            "alpha_pattern": self.alphas,
            "use_rslora": self.root_of_rank,
        }


def _matching(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            return value
    return default


def _whole(value: Any, label: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"`{label}` has to be an integer from 1 on but is {value!r}.")
    return value


def _attach(layer: nn.Module, name: str, path: str, fields: _Fields) -> LowRank:
    rank = fields.rank_of(path)
    if isinstance(layer, nn.Conv2d):
        kernel = (layer.kernel_size[0], layer.kernel_size[1])
        down: nn.Linear | nn.Conv2d = nn.Conv2d(layer.in_channels, rank, kernel, bias=False)
        up: nn.Linear | nn.Conv2d = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
    else:
        assert isinstance(layer, nn.Linear)
        down = nn.Linear(layer.in_features, rank, bias=False)
        up = nn.Linear(rank, layer.out_features, bias=False)
    if fields.init == "gaussian":
        nn.init.normal_(down.weight, std=1 / rank)
    else:
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    nn.init.zeros_(up.weight)
    for child, factor in (("lora_A", down), ("lora_B", up)):
        if child not in layer._modules:
            layer.add_module(child, nn.ModuleDict())
        factors = layer._modules[child]
        assert isinstance(factors, nn.ModuleDict)
        factors[name] = factor.to(layer.weight.device)
    return LowRank(down=down.weight, up=up.weight, scale=fields.scale_of(path))


def _tensors(layer: LowRank) -> dict[str, Tensor]:
    return {"lora_A.weight": layer.down, "lora_B.weight": layer.up}
