"""Numbers from GGUF's blocks of quantised ones, in NumPy.

Every function takes blocks as rows of bytes, ``(number of blocks, bytes)``, and returns float32,
``(number of blocks, numbers)``. The layouts are ggml's: a block has one scale (and for some types a
smallest value) in float16; "K" blocks of 256 numbers have scales of their own for parts of 16 or
32, quantised as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Of uint8 and of float32; which of them an operator keeps, NumPy's types do not tell.
Bytes = NDArray[Any]
Floats = NDArray[Any]

#: The sixteen values of IQ4, denser around zero.
_IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)


def dequantise(blocks: Bytes, kind: str) -> Floats:
    """The numbers of blocks of a type in `DEQUANTISERS`."""
    with np.errstate(all="ignore"):  # damaged scales may be infinite; the caller looks for that
        return DEQUANTISERS[kind](blocks)


def _half(blocks: Bytes, start: int) -> Floats:
    """One float16 of each block, as a column."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _nibbles(raw: Bytes) -> Bytes:
    """The lower halves of all bytes, then the upper."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def _fifth_bits(blocks: Bytes, start: int) -> Bytes:
    """The 32 bits from ``start`` on as 0 or 16."""
    return np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little") << 4


def _q4_0(blocks: Bytes) -> Floats:
    return (_nibbles(blocks[:, 2:]).astype(np.float32) - 8) * _half(blocks, 0)


def _q4_1(blocks: Bytes) -> Floats:
    return _nibbles(blocks[:, 4:]) * _half(blocks, 0) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    q = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return (q.astype(np.float32) - 16) * _half(blocks, 0)


def _q5_1(blocks: Bytes) -> Floats:
    q = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return q * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8) * _half(blocks, 0)


def _pairs(raw: Bytes) -> Bytes:
    """Bits of 128 numbers from 32 bytes, two at a time: first the lowest of all bytes."""
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    return (raw[:, :, None, :] >> shifts) & 3


def _q2_k(blocks: Bytes) -> Floats:
    scales, d, low = blocks[:, :16], _half(blocks, 80), _half(blocks, 82)
    q = _pairs(blocks[:, 16:80].reshape(-1, 2, 32)).reshape(-1, 16, 16)
    scale, offset = d * (scales & 15), low * (scales >> 4)
    return (scale[..., None] * q - offset[..., None]).reshape(-1, 256)


def _q3_k(blocks: Bytes) -> Floats:
    mask, raw, d = blocks[:, :32], blocks[:, 96:108], _half(blocks, 108)
    low = np.concatenate([raw[:, :8] & 15, raw[:, :8] >> 4], axis=1)
    high = (raw[:, None, 8:] >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]) & 3
    scale = d * ((low | (high.reshape(-1, 16) << 4)).astype(np.float32) - 32)
    q = _pairs(blocks[:, 32:96].reshape(-1, 2, 32)).reshape(-1, 256)
    bits = (mask[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    values = q.astype(np.float32) - 4 * (1 - bits.reshape(-1, 256).astype(np.float32))
    return (scale[..., None] * values.reshape(-1, 16, 16)).reshape(-1, 256)


def _six_bits(raw: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight smallest values of six bits each, from twelve bytes."""
    first, second, third = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scale = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    low = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scale, low


def _scaled_and_moved(blocks: Bytes, q: Bytes) -> Floats:
    """Eight parts of 32 with scales and smallest values, as Q4_K and Q5_K have them."""
    scale, low = _six_bits(blocks[:, 4:16])
    scale, low = _half(blocks, 0) * scale, _half(blocks, 2) * low
    return (scale[..., None] * q - low[..., None]).reshape(-1, 256)


def _q4_k(blocks: Bytes) -> Floats:
    q = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _scaled_and_moved(blocks, q)


def _q5_k(blocks: Bytes) -> Floats:
    q = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    fifth = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return _scaled_and_moved(blocks, q | (fifth << 4))


def _q6_k(blocks: Bytes) -> Floats:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 256)
    high = _pairs(blocks[:, 128:192].reshape(-1, 2, 32)).reshape(-1, 256)
    scale = _half(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    q = (low | (high << 4)).astype(np.float32) - 32
    return (scale[..., None] * q.reshape(-1, 16, 16)).reshape(-1, 256)


def _iq4_nl(blocks: Bytes) -> Floats:
    return _IQ4_VALUES[_nibbles(blocks[:, 2:])] * _half(blocks, 0)


def _iq4_xs(blocks: Bytes) -> Floats:
    high = np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16)
    high = (high >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    scale = _half(blocks, 0) * ((low | (high << 4)).astype(np.float32) - 32)
    q = _nibbles(blocks[:, 8:].reshape(-1, 8, 16))
    return (scale[..., None] * _IQ4_VALUES[q]).reshape(-1, 256)


DEQUANTISERS: dict[str, Callable[[Bytes], Floats]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}


# The other way


def quantise(rows: Floats, kind: str) -> Bytes:
    """Blocks of a type in `QUANTISERS` from rows of 32 numbers, ``(number of blocks, 32)``."""
    return QUANTISERS[kind](np.ascontiguousarray(rows, dtype=np.float32))


def _scale_to_write(scale: Floats) -> tuple[Bytes, Floats]:
    """A scale's bytes in float16, and what to multiply numbers with; 0 for a scale of 0."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    return scale.astype(np.float16).view(np.uint8), inverse


def _to_q8_0(rows: Floats) -> Bytes:
    raw, inverse = _scale_to_write(np.abs(rows).max(1, keepdims=True) / np.float32(127))
    product = rows * inverse
    q = np.trunc(product + np.copysign(np.float32(0.5), product)).astype(np.int8)
    return np.concatenate([raw, q.view(np.uint8)], axis=1)


def _packed(q: Bytes) -> Bytes:
    return q[:, :16] | (q[:, 16:] << 4)


def _to_q4_0(rows: Floats) -> Bytes:
    """The number furthest from zero becomes -8 exactly."""
    furthest = np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], axis=1)
    raw, inverse = _scale_to_write(furthest / np.float32(-8))
    q = np.trunc(rows * inverse + np.float32(8.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate([raw, _packed(q)], axis=1)


def _to_q4_1(rows: Floats) -> Bytes:
    low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
    raw, inverse = _scale_to_write((high - low) / np.float32(15))
    q = np.trunc((rows - low) * inverse + np.float32(0.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate([raw, low.astype(np.float16).view(np.uint8), _packed(q)], axis=1)


QUANTISERS: dict[str, Callable[[Floats], Bytes]] = {
    "Q8_0": _to_q8_0,
    "Q4_0": _to_q4_0,
    "Q4_1": _to_q4_1,
}
