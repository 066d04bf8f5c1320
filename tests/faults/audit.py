"""An ear on Python's audit events: imports, files, processes, sockets, code that is compiled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: How events begin that a file must not bring about.
_FORBIDDEN = (
    "builtins.breakpoint", "builtins.input", "code.__new__", "compile", "cpython.run", "ctypes.",
    "exec", "fcntl.", "ftplib.", "function.__new__", "glob.", "http.", "import", "marshal.",
    "os.", "pickle.find_class", "pty.", "shutil.", "signal.", "smtplib.", "socket.", "sqlite3.",
    "subprocess.", "sys.addaudithook", "sys.setprofile", "sys.settrace", "tempfile.", "urllib.",
    "webbrowser.",
)  # fmt: skip
_ALLOWED = ("os.fwalk", "os.listdir", "os.scandir", "os.walk")


class Forbidden(BaseException):
    """A reader of a file was about to do what no file may bring about."""


class Audit:
    """Stops and notes what is forbidden, while it is switched on.

    Python cannot take an audit hook away again, so there should be one for the whole process.

    Args:
        readable: folders below which files may be opened; empty for everywhere. None may be
            opened for writing.
    """

    def __init__(self, *readable: str) -> None:
        self._readable = readable
        self._events: list[str] | None = None
        sys.addaudithook(self._hook)

    @contextmanager
    def nothing_runs(self) -> Iterator[None]:
        """Fail when the block imports, compiles, runs, writes or connects.

        Raises:
            Forbidden: at the spot, and again at the end should something have caught it.
        """
        events = self._events = []
        try:
            yield
        finally:
            self._events = None
            if events:
                raise Forbidden("; ".join(events[:3]))

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._events is None:
            return
        if event == "open":
            bad = not self._may_open(*arguments)
        else:
            bad = event.startswith(_FORBIDDEN) and event not in _ALLOWED
        if bad:
            self._events.append(f"{event} {arguments!r}"[:200])
            raise Forbidden(self._events[-1])

    def _may_open(self, path: Any, mode: str | None, flags: int) -> bool:
        reads = mode in ("r", "rb") or (mode is None and not flags & 0b11)
        known = isinstance(path, int) or not self._readable
        return reads and (known or str(path).startswith(self._readable))
