"""Why a call has to be computed by torch, although a graph of the network could be had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._C import _len_torch_function_stack

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


def hindrance(network: nn.Module, given: Mapping[str, Any]) -> str | None:
    """What stands in the way, as a clause; None for nothing.

    Args:
        network: a UNet or an autoencoder.
        given: arguments of the call by name, ``sample`` among them.
    """
    if torch.is_grad_enabled() and any(p.requires_grad for p in network.parameters()):
        return "gradients are asked for"
    if network.training:
        return "the network is in training mode"
    if given["sample"].device.type != "cpu":
        return f"the network is on the device {given['sample'].device.type}"
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


def _of_modules(network: nn.Module) -> str | None:
    if isinstance(getattr(network, "encoder_hid_proj", None), MultiIPAdapterImageProjection):
        return "an IP-Adapter is loaded"
    for module in network.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return "hooks are on its layers"
        if isinstance(module, Attention):
            if type(module.get_processor()) not in USUAL or replacement_for(module) is not None:
                return "attention is computed by another processor"
        elif isinstance(module, UpBlock) and module.s1 is not None:
            return "FreeU is on"
    return None if quantization_of(network) is None else "its weights are quantised"
