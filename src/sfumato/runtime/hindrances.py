"""Why a call has to be computed by torch itself, although an engine has the network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _len_torch_function_stack
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from sfumato.models.attention import Attention
from sfumato.models.feature_reuse import features_now
from sfumato.models.image_projections import MultiIPAdapterImageProjection
from sfumato.models.processors import (
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
    replacement_for,
)
from sfumato.models.unet_blocks import UpBlock
from sfumato.quantization.network import quantization_of

#: Processors that differ in memory alone.
USUAL = (AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor)
#: Arguments of the UNet that the graph has no inputs for.
UNKNOWN = ("attention_mask",)


def arguments(
    network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The arguments of a call of a network by name; None for one that torch will refuse."""
    try:
        given = _signature(type(network)).bind(network, *args, **kwargs).arguments
    except TypeError:
        return None
    del given["self"]
    return given


@cache
def _signature(kind: type[nn.Module]) -> inspect.Signature:
    return inspect.signature(kind.forward)


def hindrance(network: nn.Module, given: Mapping[str, Any]) -> str | None:
    """What stands in the way, as a clause; None for nothing.

    Args:
        network: a UNet or an autoencoder.
        given: arguments of the call by name, ``sample`` among them.
    """
    if torch.is_grad_enabled() and _wants_gradients(network, given):
        return "gradients are asked for"
    if network.training:
        return "the network is in training mode"
    if given["sample"].device.type != "cpu":
        return f"the network is on the device {given['sample'].device.type}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is at work"
    if _len_torch_function_stack():
        return "something stands in for torch's functions"
    if features_now() is not None:
        return "deep features are reused"
    for name in UNKNOWN:
        if given.get(name) is not None:
            return f"`{name}` is given"
    if set(given.get("cross_attention_kwargs") or ()) - {"scale"}:
        return "`cross_attention_kwargs` are given"
    return _of_modules(network)


def _wants_gradients(network: nn.Module, given: Mapping[str, Any]) -> bool:
    inputs = pytree.tree_leaves(dict(given))
    asked = (t.requires_grad for t in (*network.parameters(), *inputs) if isinstance(t, Tensor))
    return any(asked)


def _of_modules(network: nn.Module) -> str | None:
    if isinstance(getattr(network, "encoder_hid_proj", None), MultiIPAdapterImageProjection):
        return "an IP-Adapter is loaded"
    for module in network.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return "hooks are on its layers"
        if "forward" in module.__dict__:
            return "a layer's `forward` is replaced"
        if isinstance(module, Attention):
            if type(module.get_processor()) not in USUAL or replacement_for(module) is not None:
                return "attention is computed by another processor"
        elif isinstance(module, UpBlock) and module.s1 is not None:
            return "FreeU is on"
    return None if quantization_of(network) is None else "its weights are quantised"
