"""Weights of torch's networks as they are stored, for graphs that share their memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.checkpoints.arrays import StoredTensor

#: The format's names of torch's types.
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


def stored_state(network: nn.Module) -> dict[str, StoredTensor]:
    """The ``state_dict`` of a network in main memory; numbers that are no floats are left out."""
    state = network.state_dict()
    return {name: stored(name, t) for name, t in state.items() if t.dtype in NAMES}


def stored(name: str, tensor: Tensor) -> StoredTensor:
    """One tensor; its memory is shared where it is contiguous."""
    tensor = tensor.detach().contiguous()
    bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    raw: np.ndarray[Any, Any] = bits.numpy()
    return StoredTensor(name, NAMES[tensor.dtype], raw, Path("<memory>"))


def fingerprint(network: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes when the numbers of any weight are changed by torch, or lie elsewhere."""
    return tuple(
        (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        for tensor in network.parameters()
    )
