"""Numbers drawn without torch are torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.diffusion.array_noise import ArrayNoise, TorchGenerator
from sfumato.diffusion.noise import SeededNoise

SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32 + 7, 2**64 - 1]
SIZES = [(1,), (5,), (3, 5), (15,), (16,), (17,), (31,), (6, 16, 16), (4, 9, 7), (1000,)]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_size_after_every_seed_gives_torchs_numbers(seed: int) -> None:
    for shape in SIZES:
        expected = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()
        actual = TorchGenerator(seed).randn(*shape)
        assert actual.dtype == np.float32 and actual.shape == shape
        assert np.abs(actual - expected).max() < 2e-6, shape


def test_draws_follow_each_other_as_torchs_do() -> None:
    ours, theirs = TorchGenerator(7), torch.Generator().manual_seed(7)
    for shape in [(3,), (64,), (2,), (21,), (7,), (16,)]:
        expected = torch.randn(shape, generator=theirs).numpy()
        assert np.abs(ours.randn(*shape) - expected).max() < 2e-6, shape


def test_each_picture_has_its_own_seed() -> None:
    shape = (3, 4, 6, 5)
    ours, theirs = ArrayNoise([1, 2, 1]), SeededNoise([1, 2, 1])
    for _ in range(2):
        expected = theirs.draw(shape, torch.float32, "cpu").numpy()
        assert np.abs(ours.draw(shape) - expected).max() < 2e-6
