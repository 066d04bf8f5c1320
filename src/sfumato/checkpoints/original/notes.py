"""The note in a file's metadata of what shapes do not tell; `unusual` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.checkpoints.jsonfile import parse_json
from sfumato.errors import ConfigError

#: The key of the note: JSON, component to field to value.
KEY = "sfumato.config"


def noted(metadata: Mapping[str, str], component: str) -> dict[str, Any]:
    """The fields of a component's configuration that a file notes.

    Raises:
        ConfigError: the note is none.
    """
    if KEY not in metadata:
        return {}
    values = parse_json(metadata[KEY], f"the metadata {KEY}").get(component, {})
    if not isinstance(values, dict):
        raise ConfigError(f"The metadata {KEY} has something else than settings.")
    return values
