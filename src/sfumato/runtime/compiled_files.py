"""The folder in which compiled networks are kept: whole files of one's own, or none.

    ~/.cache/sfumato/compiled/<key>-<digest>.pt2      or under XDG_CACHE_HOME, or SFUMATO_CACHE

A file holds machine code, so whoever can write it can run code as its reader. The folder is
therefore made for its owner alone, and neither a folder nor a file is used that somebody else owns
or may write. A file's name ends in the SHA-256 of its content, which a damaged one does not have.
Trouble with the folder is no error: what cannot be kept is made again. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sfumato.checkpoints.atomic import temporary_name
from sfumato.checkpoints.files import shown
from sfumato.errors import CheckpointError

logger = logging.getLogger(__name__)

#: The environment variable with the folder for everything that sfumato keeps to be faster.
SWITCH = "SFUMATO_CACHE"
#: What is used least recently goes when there are more than so many files or bytes.
MOST_FILES = 64
MOST_BYTES = 2**30
#: Seconds after which what another process was writing is given up for lost.
ABANDONED = 24 * 3600
#: Digits of the digest in a name.
_DIGITS = 32
_SUFFIX = ".pt2"


def default_folder() -> Path:
    """Where compiled networks are kept: by ``SFUMATO_CACHE``, else where caches usually are."""
    asked = os.environ.get(SWITCH)
    if asked:
        return Path(asked) / "compiled"
    try:
        home = Path.home()
    except RuntimeError:  # a user without one, as in some containers
        # Right there: who owned a folder between could put another in this one's place.
        return Path(tempfile.gettempdir()) / f"sfumato-{getattr(os, 'getuid', int)()}"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "sfumato" / "compiled"


class CompiledFiles:
    """The files in one folder.

    Args:
        folder: made when something is kept; None takes `default_folder`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (default_folder() if folder is None else folder).resolve()

    def find(self, key: str) -> Path | None:
        """The file of a key, sound and of our own, which is now the one used last."""
        for path in self._files(f"{key}-*{_SUFFIX}"):
            try:
                if not _is_ours(path):
                    logger.warning("%s is left alone: others may have written it.", shown(path))
                elif not path.stem.endswith(_digest(path)):
                    logger.warning("%s is damaged, and made anew.", shown(path))
                    self.forget(path)
                else:
                    os.utime(path)
                    return path
            except OSError as error:  # another process may remove it, too
                logger.info("%s cannot be used: %s", shown(path), error)
        return None

    def keep(self, key: str, write: Callable[[Path], object]) -> Path:
        """Let a file be written, and put it under its key in one step, for any other of that key.

        Args:
            key: letters and digits.
            write: called with the name to write to.

        Raises:
            CheckpointError: the folder belongs to somebody else, or others may write there.
            OSError: when the disk refuses.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(self.folder):
            raise CheckpointError(
                f"{shown(self.folder)} belongs to somebody else, or others may write there.",
                hint=f"Choose another folder with {SWITCH}, or take their rights away.",
            )
        hidden = temporary_name(self.folder / key)
        try:
            write(hidden)
            hidden.chmod(0o600)
            path = self.folder / f"{key}-{_digest(hidden)}{_SUFFIX}"
            os.replace(hidden, path)
        finally:
            hidden.unlink(missing_ok=True)
        for other in self._files(f"{key}-*{_SUFFIX}"):
            if other != path:
                self.forget(other)
        self._bound(path)
        return path

    def forget(self, path: Path) -> None:
        """Remove a file, if that can be done."""
        with suppress(OSError):
            path.unlink(missing_ok=True)

    def is_empty(self) -> bool:
        """Whether nothing is kept."""
        return not self._files(f"*{_SUFFIX}")

    def _files(self, pattern: str) -> list[Path]:
        try:
            return list(self.folder.glob(pattern)) if _is_ours(self.folder) else []
        except OSError:  # there is no folder, or it may not be read
            return []

    def _bound(self, newest: Path) -> None:
        """Remove what was used least recently, as far as there is too much, and lost beginnings."""
        found = []
        for path in (*self._files(f"*{_SUFFIX}"), *self._files(".*.tmp")):
            with suppress(OSError):  # another process may remove it
                status = path.stat()
                if path.suffix == _SUFFIX:
                    found.append((path == newest, status.st_mtime, status.st_size, path))
                elif status.st_mtime < time.time() - ABANDONED:
                    self.forget(path)
        total, count = sum(size for _, _, size, _ in found), len(found)
        for _, _, size, path in sorted(found)[:-1]:
            if count <= MOST_FILES and total <= MOST_BYTES:
                break
            self.forget(path)
            total, count = total - size, count - 1


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]


def _is_ours(path: Path) -> bool:
    """Whether this user owns it and nobody else may write it; a link is not ours.

    Raises:
        OSError: it is not there.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return False
    if not hasattr(os, "getuid"):  # Windows: what is under a user's profile is the user's
        return True
    return status.st_uid == os.getuid() and not status.st_mode & 0o022
