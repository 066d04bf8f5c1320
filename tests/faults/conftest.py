"""A pipeline's folder for the tests to damage."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints.tiny import tiny_pipeline


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder as this package writes it."""
    folder = tmp_path_factory.mktemp("models") / "sound"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound folder, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that no test may bring about."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()
