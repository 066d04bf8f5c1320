"""Running the command, in this process (fixture `run`) or in its own, and what it said."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Said:
    """How a run of the command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start the command as a process of its own, which Ctrl-C reaches even from a job behind."""
    words = [sys.executable, "-m", "sfumato", *(str(argument) for argument in arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        return subprocess.Popen(words, **{**pipes, **options})
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # children inherit what is ignored
    try:
        return subprocess.Popen(words, **{**pipes, **options})
    finally:
        signal.signal(signal.SIGINT, before)


def run_process(*arguments: object, **options: object) -> Said:
    """Run the command as a process of its own to its end."""
    with start(*arguments, **options) as process:
        out, err = process.communicate(timeout=600)
    return Said(process.returncode, out or "", err or "")
