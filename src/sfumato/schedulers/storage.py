"""Scheduler configurations on disk, and from one class to another.

The file is diffusers' ``scheduler_config.json``: the fields, plus ``_class_name``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.checkpoints.hub_names import HubOptions
from sfumato.config import field_names, report_unknown
from sfumato.errors import ConfigError, UnknownKeywordError, did_you_mean

if TYPE_CHECKING:
    from sfumato.schedulers.base import Scheduler

logger = logging.getLogger(__name__)

#: Options of ``from_pretrained`` that mean nothing for a scheduler.
LOADING_OPTIONS = frozenset({"dduf_entries", "mirror", "torch_dtype", "dtype", "user_agent"})

#: The version of diffusers whose file format this is.
FORMAT_VERSION = "0.35.2"


def read_config(
    path: str | PathLike[str],
    name: str,
    subfolder: str | None = None,
    hub: HubOptions | None = None,
) -> dict[str, Any]:
    """The content of a configuration file, or of the one in a folder.

    Args:
        path: the file, the folder, or a name on the hub.
        name: of the file in the folder.
        subfolder: a folder in the folder.
        hub: how to ask the hub; without it none is asked.

    Raises:
        CheckpointError: when there is no such file.
        ConfigError: when it is not a JSON object.
    """
    from sfumato.checkpoints.hub import local_copy
    from sfumato.checkpoints.hub_files import joined
    from sfumato.checkpoints.jsonfile import read_json

    if hub is not None:
        path = local_copy(path, hub, lambda model: [joined(subfolder, name)])
    place = Path(path) / subfolder if subfolder else Path(path)
    return read_json(place / name if place.is_dir() else place, allow_infinity=True)


def write_config(
    folder: str | PathLike[str], name: str, class_name: str, config: Mapping[str, Any]
) -> None:
    """Write a configuration file, whole or not at all; makes the folder."""
    from sfumato.checkpoints.jsonfile import write_json

    folder = Path(folder)
    if folder.is_file():
        raise ConfigError(f"Provided path ({folder}) should be a directory, not a file")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / name, saved_form(class_name, config), allow_infinity=True)


def saved_form(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as the file has it."""
    kept = {key: value for key, value in config.items() if key != "_use_default_values"}
    return {**kept, "_class_name": class_name, "_diffusers_version": FORMAT_VERSION}


def config_text(class_name: str, config: Mapping[str, Any]) -> str:
    """A configuration as text, for ``repr``."""
    return json.dumps(saved_form(class_name, config), indent=2, sort_keys=True, default=str)


def listed(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    return list(value) if isinstance(value, tuple) else value


def _never_set(config: Mapping[str, Any]) -> set[str]:
    """The settings that the configuration says were left at their default."""
    names = config.get("_use_default_values")
    named = names if isinstance(names, list | tuple | set | frozenset) else ()
    return {name for name in named if isinstance(name, str)}


def split_config(
    cls: type[Scheduler[Any]], config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Sort a configuration into what a class takes and what it does not.

    Args:
        cls: the class to make.
        config: of any class; ``_use_default_values`` names what was never set.
        overrides: settings given by hand.

    Returns:
        Keywords for the class; other settings, to be kept; overrides that are no settings of it.

    Raises:
        ConfigError: when ``config`` is not a mapping.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"A configuration has to be a mapping but is {type(config).__name__}.")
    known = field_names(cls.config_class)
    unset = _never_set(config)
    given = {k: v for k, v in config.items() if k not in unset and k != "_use_default_values"}
    values = {k: v for k, v in {**given, **overrides}.items() if k in known}
    extras = {k: v for k, v in given.items() if k not in values}
    if "_class_name" in extras:
        extras["_class_name"] = cls.__name__
    if strange := {key for key in extras if not str(key).startswith("_")}:
        report_unknown(cls.__name__, strange - all_fields(), known)
    return values, extras, {k: v for k, v in overrides.items() if k not in known}


def report_unused(cls: type[Scheduler[Any]], unused: Mapping[str, Any]) -> None:
    """Warn of settings that only other classes have.

    Raises:
        UnknownKeywordError: for a name that no class has.
    """
    fields = all_fields()
    for key in unused:
        if key.startswith("_"):
            continue
        if key not in fields:
            known = field_names(cls.config_class)
            raise UnknownKeywordError(
                f"{cls.__name__} has no setting '{key}'.{did_you_mean(key, known)}"
            )
        logger.warning("%s has no setting '%s'; it has no effect.", cls.__name__, key)


def all_fields() -> set[str]:
    """Names of the settings of all schedulers."""
    return {name for cls in all_classes() for name in field_names(cls.config_class)}


def all_classes() -> list[type[Scheduler[Any]]]:
    """All scheduler classes of this library."""
    from sfumato import schedulers

    return [getattr(schedulers, name) for name in schedulers.CLASS_NAMES]


def compatible_classes(cls: type[Scheduler[Any]]) -> list[type[Scheduler[Any]]]:
    """The class itself, and those that can take its place in a pipeline."""
    from sfumato import schedulers

    members = {member.name for member in schedulers.KarrasDiffusionSchedulers}
    names = {cls.__name__} | (members if cls.swappable else set())
    return [c for c in all_classes() if c.__name__ in names]
