"""Checkpoints of the two generations, small, for the tests of this folder."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from tests.checkpoints.original.synthetic import (
    checkpoint_tensors,
    networks,
    predicting,
    small_configs,
)


@pytest.fixture(scope="module")
def v1_networks() -> dict[str, nn.Module]:
    return networks(small_configs("stable-diffusion-v1"))


@pytest.fixture(scope="module")
def v1(v1_networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of a Stable Diffusion 1 checkpoint; not to be changed by a test."""
    return checkpoint_tensors(v1_networks)


@pytest.fixture(scope="module")
def v2() -> dict[str, Tensor]:
    """The tensors of a Stable Diffusion 2 base checkpoint; not to be changed by a test."""
    made = networks(small_configs("stable-diffusion-v2"), seed=1)
    return predicting(checkpoint_tensors(made), velocity=False)
