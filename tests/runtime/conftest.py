"""The kernels held to one variant after the other: see `tests.runtime.variants`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sfumato.native.library import held_to
from tests.runtime.variants import ALL, TYPES, Variant


@pytest.fixture(params=ALL)
def variant(request: pytest.FixtureRequest) -> Iterator[Variant]:
    """A variant that this processor has, in use while the test runs."""
    with held_to(request.param.instructions):
        yield request.param


@pytest.fixture
def kind(variant: Variant) -> str:
    """The name of the variant's type."""
    return variant.kind


@pytest.fixture
def dtype(variant: Variant) -> torch.dtype:
    """The variant's type."""
    return TYPES[variant.kind]
