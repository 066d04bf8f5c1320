"""Blocks of quantised numbers against the format's own package, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from sfumato.checkpoints.gguf.blocks import DEQUANTISERS, QUANTISERS, dequantise, quantise
from sfumato.checkpoints.gguf.types import BY_NAME, NUMBERS, TYPES, UNREADABLE

KINDS = sorted(DEQUANTISERS)

#: Where a block's float16 numbers are; everything else may be any bytes.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
    "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
}  # fmt: skip


def random_blocks(kind: str, count: int, seed: int) -> np.ndarray:
    r = np.random.default_rng(seed)
    blocks = r.integers(0, 256, (count, BY_NAME[kind].size), dtype=np.uint8)
    for start in HALVES[kind]:
        scale = r.standard_normal((count, 1)).astype(np.float16)
        blocks[:, start : start + 2] = scale.view(np.uint8)
    return blocks


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_any_bytes_become_the_oracles_numbers(kind: str) -> None:
    for seed in range(5):
        blocks = random_blocks(kind, 64, seed)
        found = dequantise(blocks, kind)
        expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])
        assert found.dtype == np.float32
        assert found.shape == (64, BY_NAME[kind].count)
        np.testing.assert_array_equal(found, expected.reshape(found.shape))


@pytest.mark.parametrize("kind", sorted(QUANTISERS))
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_numbers_become_the_oracles_blocks(kind: str, scale: float) -> None:
    rows = np.random.default_rng(3).standard_normal((500, 32)).astype(np.float32) * scale
    rows[0], rows[1], rows[2] = 0, 1, -rows[3]
    expected = gguf.quantize(rows, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(quantise(rows, kind), expected)


BOUNDS = {"Q8_0": 1 / 220, "Q4_0": 1 / 7.9, "Q4_1": 1 / 14}


@pytest.mark.parametrize(("kind", "bound"), BOUNDS.items())
def test_numbers_come_back_within_a_step(kind: str, bound: float) -> None:
    rows = np.random.default_rng(4).standard_normal((500, 32)).astype(np.float32)
    wide = np.abs(rows).max(1, keepdims=True)
    assert (np.abs(dequantise(quantise(rows, kind), kind) - rows) <= bound * wide).all()


def test_types_and_sizes_are_those_of_the_format() -> None:
    for number, kind in TYPES.items():
        oracle = gguf.GGMLQuantizationType(number)
        assert oracle.name == kind.name
        assert gguf.GGML_QUANT_SIZES[oracle] == (kind.count, kind.size)
        assert NUMBERS[kind.name] == number
    known = {kind.value for kind in gguf.GGMLQuantizationType}
    assert known <= set(TYPES) | set(UNREADABLE)
