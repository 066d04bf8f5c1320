"""Which tensors the compiled kernels can be given."""

from __future__ import annotations

import torch
from torch import Tensor

#: Types of numbers by the names that `sfumato.native` has for them.
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.bool: "bool"}


def ordinary(*tensors: Tensor | None) -> bool:
    """Whether all are plain dense tensors in main memory, with no gradient to follow."""
    gradients = torch.is_grad_enabled()
    return all(
        (type(t) is Tensor or type(t) is torch.nn.Parameter)
        and t.device.type == "cpu"
        and t.layout is torch.strided
        and not t.is_neg()
        and not (gradients and t.requires_grad)
        for t in tensors
        if t is not None
    )
