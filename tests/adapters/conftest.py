"""The network that adapters are put on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.pipelines.tiny import tiny_unet


@pytest.fixture
def unet() -> Any:
    return tiny_unet()
