"""Names for pictures, and writing them so that none is ever overwritten or half there.

(nothing)        outputs/2026-11-23/00007-965400086.png   next free number, seed
folder/          folder/00007-965400086.png
apple.png        apple.png, then apple_2.png, apple_3.png; so .jpg, .jpeg and .webp
apple-%03d.png   apple-000.png, apple-001.png, ...        next free number
{seed}           stands for the seed in any of them
"""

from __future__ import annotations

import datetime
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sfumato.checkpoints.atomic import fsync_path, temporary_name
from sfumato.checkpoints.picture_files import FORMATS
from sfumato.errors import InputError

_NUMBER = re.compile(r"%(0?\d{0,2})d")


def check_output(output: str | None) -> None:
    """Raise before a picture is drawn for nothing.

    Raises:
        InputError: when the name is not one of the kinds above, or not of a picture.
        OSError: when the place cannot be written to.
    """
    if output is not None and not _is_name(output):
        raise InputError(f"{output!r} is no file name.")
    folder, name = _split(output)
    if name is not None and Path(name).suffix.lower() not in FORMATS:
        raise InputError(
            f"The name {name!r} does not end as that of a picture that can be written.",
            hint=f"Use one of {', '.join(FORMATS)}; each of them carries the recipe.",
        )
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(existing))
    if not os.access(existing, os.W_OK):
        raise PermissionError(13, "Permission denied", str(existing))


def _is_name(output: str) -> bool:
    try:
        return bool(output.strip()) and b"\0" not in os.fsencode(output)
    except UnicodeEncodeError:  # half of a character
        return False


def _split(output: str | None) -> tuple[Path, str | None]:
    """The folder, and the name or pattern in it (None for a number and the seed)."""
    if output is None:
        return Path("outputs", datetime.date.today().isoformat()), None
    path = Path(output)
    if output.endswith(("/", os.sep)) or path.is_dir() or not path.suffix:
        return path, None
    return path.parent, path.name


def suffix_of(output: str | None) -> str:
    """The ending of the names that pictures get."""
    _, name = _split(output)
    return ".png" if name is None else Path(name).suffix


def candidates(output: str | None, seed: int) -> Iterator[Path]:
    """Names for a picture in the order of preference; the first that is free is meant."""
    folder, name = _split(output)
    folder = Path(str(folder).replace("{seed}", str(seed)))
    if name is None:
        start = 1 + max(_numbers(folder, re.compile(r"(\d{5,})-.*")), default=-1)
        yield from (folder / f"{number:05d}-{seed}.png" for number in itertools.count(start))
    name = (name or "").replace("{seed}", str(seed))
    if _NUMBER.search(name):
        before, width, after = _NUMBER.split(name, maxsplit=1)
        pattern = re.compile(rf"{re.escape(before)}(\d+){re.escape(after)}")
        start = 1 + max(_numbers(folder, pattern), default=-1)
        for number in itertools.count(start):
            yield folder / f"{before}{number:{width or '0'}d}{after}"
    yield folder / name
    path = Path(name)
    yield from (folder / f"{path.stem}_{number}{path.suffix}" for number in itertools.count(2))


def _numbers(folder: Path, pattern: re.Pattern[str]) -> Iterator[int]:
    with suppress(FileNotFoundError):
        for name in os.listdir(folder):
            match = pattern.fullmatch(name)
            if match and len(match[1]) < 12:
                yield int(match[1])


def write_new(output: str | None, seed: int, data: bytes) -> Path:
    """Write a picture under the first free name; returns the name.

    The bytes are on the disk before the name appears, and two processes never take one name.

    Raises:
        OSError: when the disk refuses; nothing is left behind then.
    """
    names = candidates(output, seed)
    path = next(names)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(data)
        fsync_path(temporary)
        while not _claim(temporary, path):
            path = next(names)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)
    return path


def _claim(temporary: Path, path: Path) -> bool:
    """Give the finished file its name, unless the name is taken."""
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without links, such as FAT
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        os.replace(temporary, path)
        return True
