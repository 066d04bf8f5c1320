"""Running the command in this process or in its own, and what it said."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sfumato.cli import main

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Said:
    """How a run of the command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """``run("a cat", "--steps", 3)``: the command in this process, in an empty folder."""
    for name in [name for name in os.environ if name.startswith("SFUMATO_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("sfumato")
    before = log.handlers[:], log.level, log.propagate
    terminate = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> Said:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Said(code, captured.out, captured.err)

    yield call
    log.handlers[:], log.level, log.propagate = before
    signal.signal(signal.SIGTERM, terminate)


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start the command as a process of its own."""
    words = [sys.executable, "-m", "sfumato", *(str(argument) for argument in arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, **{**pipes, **options})


def run_process(*arguments: object, **options: object) -> Said:
    """Run the command as a process of its own to its end."""
    with start(*arguments, **options) as process:
        out, err = process.communicate(timeout=120)
    return Said(process.returncode, out or "", err or "")
