"""The benchmark of attention: its shapes, and that a row of it is measured."""

from __future__ import annotations

import pytest
import torch

from benchmarks import attention
from benchmarks.attention import Shape
from sfumato.native.library import can_compute


def test_the_shapes_are_those_of_a_step_and_a_decoding() -> None:
    found = attention.shapes(512)
    assert found[0] == Shape("UNet, 64x64", 2, 8, 40, 4096, 4096)
    assert found[0].operations == 4 * 2 * 8 * 4096**2 * 40
    assert [s.keys for s in found] == [4096, 77, 1024, 77, 256, 77, 64, 77, 4096]
    assert found[-1] == Shape("VAE", 1, 1, 512, 4096, 4096)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_holds_times_rates_and_the_share_of_the_peak(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "LEAST_SECONDS", 0.0)
    times = attention.measured(Shape("here", 1, 2, 8, 20, 30), dtype, rounds=2)
    kernel = can_compute(str(dtype).removeprefix("torch."))
    assert list(times) == ["torch", "blocks", *(["kernel"] if kernel else [])]
    assert all(t > 0 for t in times.values())
    line = attention.row(
        Shape("here", 1, 1, 5, 10, 5), {"torch": 2e-6, "blocks": 4e-6, "kernel": 1e-6}, 2e9
    )
    assert line == "here, 5 keys of 5 | 0.00 ms, 0 | 0.00 ms, 0 | 0.00 ms, 1 | 2.00 | 50%"
    assert (attention.peak(dtype) is not None) == kernel
