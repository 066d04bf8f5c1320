"""Writing so that a reader sees the old content or the new, never a part.

Everything is written to a temporary name in the same directory, flushed to the disk, and then
renamed. An exception removes the temporary name; a killed process can leave one behind (its name
begins with a dot and ends in ``.tmp``), which no reader looks at.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def temporary_name(path: str | os.PathLike[str]) -> Path:
    """An unused name beside ``path``, on the same file system, that no reader would pick up."""
    path = Path(path)
    return path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex[:12]}.tmp")


def fsync_path(path: str | os.PathLike[str]) -> None:
    """Flush a file's or directory's content to the disk.

    Directories cannot be flushed on every system; there the call does nothing.
    """
    path = Path(path)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary name to write to; when the block succeeds it becomes ``path``.

    The parent directory has to exist. When the block raises, ``path`` is as it was before.

    Raises:
        OSError: when the disk refuses (full, read-only, ``path`` is a directory).
    """
    path = Path(path)
    temporary = temporary_name(path)
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode  # as the user's umask has it; some writers make it private
    try:
        yield temporary
        os.chmod(temporary, mode)
        fsync_path(temporary)
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    fsync_path(path.parent)


def write_file_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a whole file (text as UTF-8), or leave what was there.

    Raises:
        OSError: when the disk refuses.
    """
    content = data.encode("utf-8") if isinstance(data, str) else data
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def atomic_directory(
    path: str | os.PathLike[str],
    *,
    obsolete: Callable[[Path, Path], Iterable[Path]] | None = None,
) -> Iterator[Path]:
    """Yield a temporary directory to fill; when the block succeeds its content is at ``path``.

    When ``path`` does not exist, the directory is renamed into place in one step. When it does,
    its other files stay, and the new files are renamed over the old ones after all of them are on
    the disk, so a full disk or an exception leaves the old content whole.

    Args:
        path: the directory to make or to add to; parents are made.
        obsolete: called with (temporary, path) when ``path`` exists; the files it returns are
            removed before the first rename, so that old and new files are never read together.

    Raises:
        OSError: when the disk refuses, or ``path`` is not a directory.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"'{path}' exists and is not a directory.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        for directory, _, names in os.walk(temporary):
            for name in names:
                fsync_path(Path(directory, name))
            fsync_path(directory)
        if path.exists():
            for file in list(obsolete(temporary, path)) if obsolete else ():
                file.unlink()
            _move_files(temporary, path)
        else:
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_path(path.parent)


def _move_files(source: Path, target: Path) -> None:
    """Rename all files; JSON comes last, because an index must not name files still to come."""
    for directory, _, names in os.walk(source, topdown=False):
        place = target / Path(directory).relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        for name in sorted(names, key=lambda name: (name.endswith(".json"), name)):
            os.replace(Path(directory, name), place / name)
        fsync_path(place)
