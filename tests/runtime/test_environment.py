"""Settings made before torch is imported."""

from __future__ import annotations

import os

import pytest

from sfumato.runtime.environment import share_processors


def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    share_processors()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    share_processors()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
