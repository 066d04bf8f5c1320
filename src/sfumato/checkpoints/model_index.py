"""``model_index.json``: which components a pipeline's folder has, as claims to be checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from sfumato.checkpoints.files import shown
from sfumato.checkpoints.places import model_root, read_config
from sfumato.errors import ConfigError

INDEX_NAME = "model_index.json"
#: A file of the command's own: how to draw with the model where nothing else is said.
DEFAULTS_NAME = "generation.json"


@dataclass(frozen=True, kw_only=True)
class ModelIndex:
    """A pipeline's folder.

    Attributes:
        root: the folder.
        class_name: the pipeline's class as the file says, without a leading ``Flax``.
        components: name to (library, class) in the order of the file; (None, None) for a
            component that is absent on purpose.
        settings: what else the file says, such as ``requires_safety_checker``.
    """

    root: Path
    class_name: str | None
    components: Mapping[str, tuple[str | None, str | None]]
    settings: Mapping[str, Any]


def read_model_index(path: str | PathLike[str]) -> ModelIndex:
    """Read the index of a pipeline's folder.

    Raises:
        ModelNotFoundError: (``OSError`` and ``ValueError``) no such folder, or no index in it.
        ConfigError: (a ``ValueError``) the index is wrong, or points out of the folder.
    """
    root = model_root(path)
    values = read_config(root, INDEX_NAME, root)
    where = shown(root / INDEX_NAME)
    name = values.get("_class_name")
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"{where}: `_class_name` has to be text but is {str(name)[:80]!r}.")
    components: dict[str, tuple[str | None, str | None]] = {}
    settings: dict[str, Any] = {}
    for key, value in values.items():
        if key.startswith("_"):
            continue
        if isinstance(value, list):
            components[_checked_name(key, where)] = _checked_entry(key, value, where)
        else:
            settings[key] = value
    class_name = name.removeprefix("Flax") if name is not None else None
    return ModelIndex(root=root, class_name=class_name, components=components, settings=settings)


def _checked_name(key: str, where: str) -> str:
    if not key.isidentifier() or not key.isascii():
        raise ConfigError(f"{where}: {key[:80]!r} cannot be the name of a component.")
    return key


def _checked_entry(key: str, value: list[Any], where: str) -> tuple[str | None, str | None]:
    if len(value) == 2 and value[0] is None and value[1] is None:
        return None, None
    if len(value) != 2 or not all(isinstance(part, str) for part in value):
        raise ConfigError(
            f"{where}: `{key[:80]}` has to be a pair of a library and a class, or of two nulls, "
            f"but is {str(value)[:80]}."
        )
    library, name = value
    if not all(part.isidentifier() and part.isascii() for part in value):
        raise ConfigError(
            f"{where}: `{key[:80]}` names {library[:80]!r}, {name[:80]!r}, which are no names of a "
            "library and a class."
        )
    return library, name
