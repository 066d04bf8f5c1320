"""Attention out of torch's own matrix products, where no compiled kernel is to be had.

torch's fused attention multiplies small blocks by a library that takes a slow path on some
processors, while its matrix product in bfloat16 goes to oneDNN. So queries are taken in blocks, one
head at a time, and their scores multiplied as matrices: no more of them exist at once than
`BLOCK` times the number of keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.runtime.machine import this_machine

#: Queries at a time: enough for a matrix product at full rate, few enough for the cache.
BLOCK = 256


def can_block() -> bool:
    """Whether this processor is one where blocks pay: it has bfloat16, but not AMX.

    Where it multiplies whole tiles at once (AMX), torch's own attention is tuned for it.
    """
    instructions = this_machine().instructions
    return "avx512_bf16" in instructions and "amx_bf16" not in instructions


def is_worth_blocking(query: Tensor, key: Tensor) -> bool:
    """Whether `blocked_attention` is faster than torch's.

    Measured on an AMD Zen 4, one core, in bfloat16 (``python -m benchmarks.attention``): 1.3 times
    as fast at 4,096 tokens with heads of 40 channels, 1.4 at 1,024 of 80, 1.6 at 256 of 160, 1.9 at
    4,096 of 512; slower for the 77 keys of a text and in float32.
    """
    enough = min(query.shape[2], key.shape[2]) >= BLOCK
    return enough and query.dtype == torch.bfloat16 and can_block()


def blocked_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Softmax attention; the softmax is computed in float32, its scores rounded like the inputs.

    Args:
        query: ``(N, heads, L, D)``.
        key: ``(N, heads, S, D)``.
        value: ``(N, heads, S, E)``.
        scale: factor on the scores.

    Returns:
        ``(N, heads, L, E)``, laid out as ``(N, L, heads, E)``.
    """
    n, heads, length, _ = query.shape
    out = query.new_empty(n, length, heads, value.shape[3]).transpose(1, 2)
    for image in range(n):
        for head in range(heads):
            keys = key[image, head].contiguous().t()
            values = value[image, head].contiguous()
            for start in range(0, length, BLOCK):
                block = slice(start, start + BLOCK)
                scores = torch.mm(query[image, head, block], keys).mul_(scale)
                out[image, head, block] = scores.softmax(dim=-1) @ values
    return out
