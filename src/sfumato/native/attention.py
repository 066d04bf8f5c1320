"""Attention by the compiled kernels, on arrays of any library.

torch's tensors come here through `sfumato.runtime.attention`; this module knows addresses alone.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from sfumato.native.library import can_compute, library

#: How the kernels count the types of a bias.
_BIAS_KINDS = {"float32": 1, "bfloat16": 2, "bool": 3}


class Strided(NamedTuple):
    """Where an array of four dimensions lies.

    Attributes:
        address: of the first number.
        dtype: "float32", "bfloat16" or, for a bias, "bool".
        shape: its sizes.
        strides: from one number to the next along each dimension, counted in numbers; 0 repeats.
    """

    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def attend(
    q: Strided,
    k: Strided,
    v: Strided,
    out: Strided,
    bias: Strided | None,
    *,
    scale: float,
    causal: bool = False,
    threads: int = 1,
) -> None:
    """Softmax attention, ``softmax(scale * q k^T + bias) v``, into ``out``.

    Scores, weights and sums are float32; in bfloat16 the weights are rounded before they meet the
    values. A query that sees no key yields zeros, one that meets NaN or infinity yields NaN.

    Args:
        q: queries ``(N, heads, L, D)``.
        k: keys ``(N, heads, S, D)``.
        v: values ``(N, heads, S, E)``.
        out: ``(N, heads, L, E)``. All four have one type, a last stride of 1 and no empty
            dimension.
        bias: added to the scores, of shape ``(N, heads, L, S)``; False in a "bool" hides a key.
        scale: factor on the scores.
        causal: hide from each query the keys with a higher number.
        threads: how many to use at the most.

    Raises:
        MemoryError: there is none for the packed keys and values.
    """
    found = library()
    assert found is not None and can_compute(q.dtype)
    sizes = [
        *(q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3]),
        *(step for array in (q, k, v, out) for step in array.strides[:3]),
        *(bias.strides if bias is not None else (0, 0, 0, 0)),
    ]
    failed = getattr(found, f"sfumato_attention_{q.dtype}")(
        *(q.address, k.address, v.address, out.address),
        None if bias is None else bias.address,
        0 if bias is None else _BIAS_KINDS[bias.dtype],
        causal,
        scale,
        (ctypes.c_long * len(sizes))(*sizes),
        threads,
    )
    if failed:
        raise MemoryError("There is not enough memory for attention.")
