"""The switch for xformers: it reaches all networks that know it, or says why it cannot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from sfumato.models.xformers_attention import require_xformers

METHOD = "set_use_memory_efficient_attention_xformers"


def switch(networks: Iterable[nn.Module], on: bool, attention_op: Any = None) -> None:
    """Tell every network that knows xformers to use it, or no longer.

    Raises:
        MissingDependencyError: when switching on and xformers is not installed.
        InputError: when switching on and there is no CUDA device.
    """
    if on:
        require_xformers()
    for network in networks:
        if hasattr(network, METHOD):
            getattr(network, METHOD)(on, attention_op)
