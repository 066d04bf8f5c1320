"""What ships inside the package besides code; here, the way to the embedded model.

A model folder may hold ``SHA256SUMS``, in the format of the ``sha256sum`` program, so that a
damaged installation is told from a bad idea.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from sfumato.checkpoints.atomic import write_file_atomically
from sfumato.checkpoints.files import is_regular, open_regular, shown
from sfumato.errors import CheckpointError

MANIFEST = "SHA256SUMS"
_FOLDER = Path(__file__).parent
_REINSTALL = "Reinstall sfumato, for example with `pip install --force-reinstall --no-deps`."


def embedded_model_path() -> Path:
    """The folder of the model that ships with the package, in diffusers' layout.

    Raises:
        CheckpointError: when this installation has none.
    """
    folder = _FOLDER / "model"
    if not is_regular(folder / "model_index.json"):
        raise CheckpointError(
            f"This installation has no embedded model at {shown(folder)}.", hint=_REINSTALL
        )
    return folder


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content as hexadecimal digits.

    Raises:
        CheckpointError: when the path is no readable file.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: str | os.PathLike[str]) -> Path:
    """Write ``SHA256SUMS`` over all files of a folder; returns its path."""
    folder = Path(folder)
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST and not path.name.startswith(".")
    )
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in names]
    write_file_atomically(folder / MANIFEST, "".join(lines))
    return folder / MANIFEST


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, str]:
    """The file names and hashes that ``SHA256SUMS`` lists.

    Raises:
        CheckpointError: when it is missing or damaged.
    """
    path = Path(folder) / MANIFEST
    with open_regular(path) as file:
        lines = file.read(1 << 20).decode("utf-8", "replace").splitlines()
    entries: dict[str, str] = {}
    for line in lines:
        match = re.fullmatch(r"([0-9a-f]{64})  ([\w\-.][\w\-./]*)", line)
        if match is None or ".." in match[2]:
            raise CheckpointError(f"{shown(path)} is damaged: {line[:80]!r}.", hint=_REINSTALL)
        entries[match[2]] = match[1]
    return entries


def verify_manifest(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Check every listed file; returns the names and hashes.

    Raises:
        CheckpointError: naming the first file that is missing or not what it was, with the hash
            that is expected.
    """
    entries = read_manifest(folder)
    for name, expected in entries.items():
        path = Path(folder) / name
        if not is_regular(path):
            raise CheckpointError(
                f"{shown(path)} is missing (SHA-256 {expected}).", hint=_REINSTALL
            )
        found = file_sha256(path)
        if found != expected:
            raise CheckpointError(
                f"{shown(path)} is damaged: its SHA-256 is {found}, expected is {expected}.",
                hint=_REINSTALL,
            )
    return entries
