"""What no reader of a file may do, watched while it reads; for child processes only.

`Audit` sees imports, files, processes and sockets; timers and limits of the system see to time and
memory.
"""

from __future__ import annotations

import codecs
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sfumato
from tests.faults.audit import Audit

#: Seconds of CPU time for one input; a sound file takes some milliseconds.
TIME = 5.0

#: Address space that a child may take beyond what it had when it began.
MEMORY = 2**30


class Hang(BaseException):
    """An input took more CPU time than any file may."""


class Watch:
    """Limits for the whole process, and `run` for one reader; see the module.

    Args:
        folder: where the files are; the package's own files may be opened besides.
    """

    def __init__(self, folder: Path) -> None:
        for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"):
            codecs.lookup(name)  # JSON may be in them, and Python loads a module for each
        self._audit = Audit(str(folder), str(Path(sfumato.__file__).parent))
        signal.signal(signal.SIGPROF, self._too_long)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def run(self, read: Callable[[], Any]) -> Any:
        """Call ``read``; `Hang` and `Forbidden` end it."""
        signal.setitimer(signal.ITIMER_PROF, TIME)
        try:
            with self._audit.nothing_runs():
                return read()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _too_long(self, *_: object) -> None:
        raise Hang(f"more than {TIME:g} s of CPU time")
