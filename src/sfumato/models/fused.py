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


def group_moments(x: Tensor, groups: int) -> Tensor:
    """``(N, groups, 2)``: the mean of each group of channels, and the sum of squares around it.

    In float32 at least. For norms of maps that are computed part by part, with `scale_act`.
    """
    found = pointwise.group_moments(x, groups) if kernels.computing() else None
    if found is not None:
        return found
    x = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (groups, -1)).flatten(2)
    variance, mean = torch.var_mean(x, dim=2, correction=0)
    return torch.stack([mean, variance * x.shape[2]], dim=2)


def scale_act(x: Tensor, factors: Tensor, act: nn.Module) -> Tensor:
    """``act(x * factors[:, 0] + factors[:, 1])`` with numbers ``(N, 2, C)`` for the channels."""
    if kernels.computing() and is_bare(act, nn.SiLU):
        y = pointwise.scaled(x, factors.to(torch.float32), silu=True)
        if y is not None:
            return y
    wide = torch.promote_types(x.dtype, torch.float32)
    scale, shift = factors.to(wide)[..., None, None].unbind(dim=1)
    return act(torch.addcmul(shift, x.to(wide), scale)).to(x.dtype)


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
