"""xformers, for networks of other libraries that a user hands in.

sfumato's own networks use torch's scaled-dot-product attention, which has the same memory use, so
for them the switch changes nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sfumato.errors import InputError, MissingDependencyError

METHOD = "set_use_memory_efficient_attention_xformers"


def switch(networks: Iterable[nn.Module], on: bool, attention_op: Any = None) -> None:
    """Tell every network that knows xformers to use it, or no longer.

    Raises:
        MissingDependencyError: when switching on and xformers is not installed.
        InputError: when switching on and there is no CUDA device.
    """
    if on and importlib.util.find_spec("xformers") is None:
        raise MissingDependencyError(
            "xformers is not installed.",
            hint="sfumato's attention needs as little memory without it: leave out this call.",
        )
    if on and not torch.cuda.is_available():
        raise InputError(
            "torch.cuda.is_available() should be True but is False. xformers' memory efficient"
            " attention is only available for GPU.",
            hint="Leave out this call.",
        )
    for network in networks:
        if hasattr(network, METHOD):
            getattr(network, METHOD)(on, attention_op)
