"""Temporary files for what need not be in memory: where they are, and whether they find room."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
#: Room that is left on the disk, in bytes.
SPARE_DISK = 2**30
#: File systems that are themselves in memory.
_IN_MEMORY = {"tmpfs", "ramfs"}
#: By which users say where temporary files shall be; Python heeds them too.
_VARIABLES = ("TMPDIR", "TEMP", "TMP")
#: The system's folder for temporary files that are large or stay for long.
_LARGE_FILES = "/var/tmp"


def folder() -> str:
    """Where temporary files are.

    Python's ``tempfile.gettempdir()``, which the variable ``TMPDIR`` sets. Where nobody has set it
    and that folder is itself in memory, as ``/tmp`` is on some systems: ``/var/tmp``.

    Raises:
        OSError: there is no folder in which files can be made.
    """
    usual = tempfile.gettempdir()
    if any(os.environ.get(name) for name in _VARIABLES) or not _is_in_memory(usual):
        return usual
    usable = os.access(_LARGE_FILES, os.W_OK | os.X_OK) and not _is_in_memory(_LARGE_FILES)
    return _LARGE_FILES if usable else usual


def has_room(place: str, size: int) -> bool:
    """Whether so many bytes find room in a folder, and leave some.

    Raises:
        OSError: the folder is not there.
    """
    return shutil.disk_usage(place).free >= size + SPARE_DISK


def _is_in_memory(place: str) -> bool:
    """Whether a folder's files take main memory; False where the system does not say."""
    try:
        mounts = [line.split()[1:3] for line in MOUNTS.read_text("utf-8", "replace").splitlines()]
    except OSError:
        return False
    path = Path(place).resolve()
    over = [(len(at), kind) for at, kind in mounts if path.is_relative_to(_unescaped(at))]
    return bool(over) and max(over)[1] in _IN_MEMORY


def _unescaped(path: str) -> str:
    """A path as the table of mounts has it, where a space is ``\\040``."""
    return path.replace("\\040", " ")
