"""Opening a file that somebody else wrote: only a regular file is opened, and nothing blocks.

Every reader of this folder goes through `open_regular`, so a pipe, a device, a directory or an
impossible name ends in one sentence instead of a hang.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from sfumato.errors import CheckpointError

_OPEN_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)  # a pipe without a writer must not block the open
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def shown(path: str | os.PathLike[str]) -> str:
    """The path as error messages show it: quoted, one line, at most some 200 characters."""
    text = ascii(os.fspath(path))[1:-1]
    return f"'{text}'" if len(text) <= 200 else f"'{text[:90]}…{text[-90:]}'"


def checked_path(path: str | os.PathLike[str]) -> Path:
    """The path as a `Path`, when it is text that every later step can handle.

    Raises:
        CheckpointError: for a NUL character, or a name that is not valid Unicode.
    """
    text = os.fspath(path)
    if isinstance(text, bytes):
        raise CheckpointError(f"A path has to be text but is bytes: {text[:80]!r}.")
    if not text or "\0" in text:
        raise CheckpointError(f"{shown(text)} is no file name.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise CheckpointError(
            f"The name {shown(text)} is not valid Unicode.", hint="Rename the file."
        ) from None
    return Path(text)


def kind_of(mode: int) -> str:
    """A word for what ``st_mode`` says the path is, for messages."""
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "not a regular file")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, unbuffered state and position 0.

    Raises:
        CheckpointError: (an ``OSError``) when the path does not name a readable regular file.
    """
    checked = checked_path(path)
    try:
        # Looked at before opening, because opening a device can have effects; looked at again
        # after opening, because the name may have changed hands in between.
        _require_regular(os.stat(checked), checked)
        descriptor = os.open(checked, _OPEN_FLAGS)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"There is no file {shown(checked)}.") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{shown(checked)} cannot be opened: {reason}.") from error
    try:
        _require_regular(os.fstat(descriptor), checked)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Whether the path names an existing regular file; never raises, never blocks."""
    try:
        return stat.S_ISREG(os.stat(checked_path(path)).st_mode)
    except (OSError, ValueError):
        return False


def fingerprint(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """What changes when a file's content does: (modification time in ns, bytes, inode).

    A cache of loaded models keeps it beside the name, to notice a file that was replaced.

    Raises:
        CheckpointError: when the path does not name a readable regular file.
    """
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
    return status.st_mtime_ns, status.st_size, status.st_ino


def require_inside(path: Path, root: Path) -> Path:
    """The path, when following all links it stays below ``root``.

    A hub's cache keeps a model's folder as links into a folder of blobs beside it
    (``models--x/snapshots/<revision>/`` and ``models--x/blobs/``); those links are allowed.

    Raises:
        CheckpointError: when the path leads out, or cannot be followed.
    """
    try:
        real, base = path.resolve(), root.resolve()
        allowed = [base, *(p.parent / "blobs" for p in (base, *base.parents) if _is_snapshots(p))]
    except (OSError, RuntimeError, ValueError):
        raise CheckpointError(f"{shown(path)} cannot be followed to a file.") from None
    if not any(real.is_relative_to(directory) for directory in allowed):
        raise CheckpointError(
            f"{shown(path)} leads out of the model's folder {shown(root)}, which is refused.",
            hint="Copy the file into the folder.",
        )
    return path


def _is_snapshots(path: Path) -> bool:
    return path.name == "snapshots" and (path.parent / "blobs").is_dir()


def _require_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(
            f"{shown(path)} is {kind_of(status.st_mode)}.", hint="A regular file is needed."
        )
