"""Faster stand-ins for torch's attention on the processor.

`fast_attention` takes what `torch.nn.functional.scaled_dot_product_attention` takes, and answers
None where torch is to do it. Two forms stand behind it: the compiled kernel where there is one for
this machine, else `sfumato.runtime.blocked_attention` where that is faster than torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.native.attention import Strided, attend
from sfumato.native.library import can_compute
from sfumato.runtime.blocked_attention import blocked_attention, is_worth_blocking
from sfumato.runtime.ordinary import NAMES, ordinary


def fast_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """Softmax attention without gradients; arguments as in torch's function.

    Returns:
        ``(N, heads, L, E)``, laid out so that ``transpose(1, 2).flatten(2)`` is free; or None for
        what only torch can do: gradients, dropout, other devices and types, and wrong arguments,
        which it refuses.
    """
    if dropout_p or enable_gqa or not _plain(query, key, value, attn_mask):
        return None
    bias = None
    if attn_mask is not None:
        if is_causal or attn_mask.dtype not in NAMES:
            return None
        try:
            bias = attn_mask.expand(*query.shape[:3], key.shape[2])
        except RuntimeError:
            return None
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if can_compute(NAMES[query.dtype]):
        return _native(query, key, value, bias, factor, is_causal)
    if bias is None and not is_causal and is_worth_blocking(query, key):
        return blocked_attention(query, key, value, factor)
    return None


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether these are ordinary tensors of fitting shapes, with no gradient to follow."""
    if not ordinary(query, key, value, mask):
        return False
    if query.dtype not in (torch.float32, torch.bfloat16):
        return False
    if not query.dtype == key.dtype == value.dtype:
        return False
    if not query.ndim == key.ndim == value.ndim == 4 or 0 in (*query.shape, *value.shape):
        return False
    return (
        query.shape[:2] == key.shape[:2] == value.shape[:2]
        and query.shape[3] == key.shape[3]
        and key.shape[2] == value.shape[2]
    )


def _native(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, causal: bool
) -> Tensor:
    n, heads, length, _ = query.shape
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (query, key, value))
    out = query.new_empty(n, length, heads, value.shape[3]).transpose(1, 2)
    attend(
        _strided(q),
        _strided(k),
        _strided(v),
        _strided(out),
        None if bias is None else _strided(bias),
        scale=scale,
        causal=causal,
        threads=torch.get_num_threads(),
    )
    return out


def _strided(t: Tensor) -> Strided:
    return Strided(t.data_ptr(), NAMES[t.dtype], t.shape, t.stride())
