"""Steps of the networks that one kernel computes together where there is one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.runtime import kernels, pointwise


def norm_act(norm: nn.Module, act: nn.Module, x: Tensor, overwrite: bool = False) -> Tensor:
    """``act(norm(x))``.

    With ``overwrite`` the result may take the place of ``x``, of which the caller says that nobody
    else needs it; without gradients only.
    """
    if not is_bare(norm, nn.GroupNorm) or not is_bare(act, nn.SiLU):
        return act(norm(x))
    assert isinstance(norm, nn.GroupNorm)
    if kernels.computing():
        y = pointwise.group_norm(
            x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu=True, overwrite=overwrite
        )
        if y is not None:
            return y
    y = norm(x)
    return act(y) if torch.is_grad_enabled() else F.silu(y, inplace=True)


def geglu(x: Tensor) -> Tensor:
    """``(..., 2C)`` to ``(..., C)``: the first half times the GELU of the second."""
    y = pointwise.geglu(x) if kernels.computing() else None
    if y is not None:
        return y
    x, gate = x.chunk(2, dim=-1)
    return x * F.gelu(gate)


def is_bare(module: nn.Module, kind: type[nn.Module] | None = None) -> bool:
    """Whether calling a module does nothing beside what its class, or this very one, does."""
    return (
        (kind is None or type(module) is kind)
        and "forward" not in module.__dict__
        and not module._forward_pre_hooks
        and not module._forward_hooks
    )
