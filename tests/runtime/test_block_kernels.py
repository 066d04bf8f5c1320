"""Numbers from GGUF's blocks by the kernels, against those that NumPy makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.checkpoints.gguf.blocks import dequantise
from sfumato.checkpoints.gguf.types import BY_NAME
from sfumato.quantization import kernels

#: What a multiplication and an addition may round, and what bfloat16 does.
BOUNDS = {torch.float32: 2e-7, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("count", [1, 7, 3000])
def test_blocks_hold_the_numbers_that_numpy_finds(
    dtype: torch.dtype, name: str, count: int
) -> None:
    rng = np.random.default_rng(count)
    blocks = rng.integers(0, 256, (count, BY_NAME[name].size), np.uint8)  # any scales
    blocks[:, :4] = rng.standard_normal((count, 2)).astype(np.float16).view(np.uint8)
    if count > 100:
        odd = np.array([0, 1, 0x03FF, 0x7BFF, 0x7C00, 0xFC00, 0x7E00], np.uint16)
        blocks[: len(odd), :2] = odd.view(np.uint8).reshape(-1, 2)
    raw = torch.from_numpy(blocks).flatten()
    assert kernels.can_expand(raw, name, dtype)
    found = kernels.expand(raw, name, dtype)
    wanted = torch.from_numpy(dequantise(blocks, name)).flatten()
    least = wanted[wanted.isfinite()].abs().max() * 1e-7
    assert found.dtype == dtype
    assert torch.allclose(found.float(), wanted, BOUNDS[dtype], least.item(), equal_nan=True)
