"""Where a model's folder is, its parts, and the configurations in it; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Container, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from sfumato.checkpoints.files import checked_path, require_inside, shown
from sfumato.checkpoints.jsonfile import read_json
from sfumato.errors import ConfigError, ModelNotFoundError


def model_root(path: str | PathLike[str]) -> Path:
    """The folder of a model.

    Raises:
        CheckpointError: for impossible names.
        ModelNotFoundError: when it is no folder.
    """
    folder = checked_path(path)
    try:
        if folder.is_dir():
            return folder
        there = folder.exists()
    except OSError as error:
        raise ModelNotFoundError(f"{shown(path)} cannot be read: {error.strerror}.") from None
    problem = "is not a folder but a file" if there else "is not a folder on this machine"
    raise ModelNotFoundError(
        f"{shown(path)} {problem}.",
        hint="Give the folder that holds `model_index.json` or `config.json`.",
    )


def subfolder_of(root: Path, path: str | PathLike[str], subfolder: str | None) -> Path:
    """The folder ``path/subfolder``, which must lie in ``root``."""
    if not subfolder:
        return model_root(path)
    folder = require_inside(checked_path(path) / checked_path(subfolder), root)
    if not folder.is_dir():
        raise ModelNotFoundError(f"{shown(root)} has no folder {shown(subfolder)}.")
    return folder


def read_config(folder: Path, name: str, root: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder; no link may leave ``root``."""
    path = folder / name
    if not path.is_symlink() and not path.exists():
        raise ModelNotFoundError(f"The folder {shown(folder)} has no file named `{name}`.")
    return read_json(require_inside(path, root))


def check_class(values: Mapping[str, Any], names: Container[str], wanted: str, path: Path) -> None:
    """Raise `ConfigError` when a configuration says that it is of another class.

    Args:
        values: the configuration.
        names: that it may give its class, after ``Flax`` or without.
        wanted: the class that is to be loaded, for messages.
        path: of the configuration.
    """
    name = values.get("_class_name")
    if name is None:
        return
    if not isinstance(name, str) or name.removeprefix("Flax") not in names:
        raise ConfigError(
            f"{shown(path)} describes a {str(name)[:80]!r}, not a {wanted}.",
            hint="Choose another folder, or load it with its own class.",
        )
