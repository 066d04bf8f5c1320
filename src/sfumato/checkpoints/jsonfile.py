"""JSON files that configure something: small, strict, with the line of a mistake in the message."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.checkpoints.atomic import write_file_atomically
from sfumato.checkpoints.files import open_regular, shown
from sfumato.errors import ConfigError

#: The largest configuration of an official checkpoint has 5 kB.
MAX_CONFIG_BYTES = 2**20


#: More digits than any number that means something; Python's own integers would take thousands.
_LONG_INTEGER = re.compile("[0-9]{100}")


class _Strict(ValueError):
    """Raised by the parser's hooks: a message, and a pattern that finds the place in the text."""

    def __init__(self, message: str, pattern: str) -> None:
        super().__init__(message)
        self.pattern = pattern


def read_json(
    path: str | os.PathLike[str],
    *,
    max_bytes: int = MAX_CONFIG_BYTES,
    allow_infinity: bool = False,
) -> dict[str, Any]:
    """The JSON object in a file.

    Stricter than Python's parser: no NaN or infinity (unless ``allow_infinity``), no key twice, an
    object at the top, at most ``max_bytes``.

    Raises:
        CheckpointError: when the path is no readable file.
        ConfigError: when the content is wrong; the message gives the line.
    """
    path = Path(path)
    with open_regular(path) as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise ConfigError(
            f"{shown(path)} has more than {max_bytes} bytes, too large for a configuration."
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{shown(path)}, line {line}: not UTF-8 text.") from None
    return parse_json(text, shown(path), allow_infinity=allow_infinity)


def parse_json(text: str, label: str, *, allow_infinity: bool = False) -> dict[str, Any]:
    """As `read_json`, for text; ``label`` says in messages where it came from."""
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_infinity if allow_infinity else _no_constant,
            parse_float=_finite,
            parse_int=_no_integer_of_such_length if _LONG_INTEGER.search(text) else None,
        )
    except json.JSONDecodeError as error:
        raise ConfigError(f"{label}, line {error.lineno}: not JSON: {error.msg}.") from None
    except _Strict as error:
        raise ConfigError(f"{label}, line {_line(text, error.pattern)}: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{label}, line 1: not JSON: nested too deeply.") from None
    if not isinstance(value, dict):
        raise ConfigError(
            f"{label}, line 1: an object in braces is needed, found {type(value).__name__}."
        )
    return value


def write_json(
    path: str | os.PathLike[str], values: Mapping[str, Any], *, allow_infinity: bool = False
) -> None:
    """Write an object with sorted keys, whole or not at all.

    Raises:
        ConfigError: when a value cannot be written as JSON (NaN, an object, ...).
        OSError: when the disk refuses.
    """
    try:
        text = json.dumps(dict(values), indent=2, sort_keys=True, allow_nan=allow_infinity)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{shown(path)} cannot be written as JSON: {error}.") from None
    write_file_atomically(path, text + "\n")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) == len(pairs):
        return table
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            escaped = re.escape(json.dumps(key, ensure_ascii=False))
            raise _Strict(f"the key {key[:80]!r} appears twice", rf"{escaped}\s*:(?s:.*){escaped}")
        seen.add(key)
    return table


def _infinity(token: str) -> float | None:
    return _no_constant(token) if token == "NaN" else float(token)


def _no_constant(token: str) -> None:
    raise _Strict(f"{token} is no number of JSON", rf"[\[:,\s]{token}")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _Strict(f"the number {digits[:40]} is too large", re.escape(digits))
    return value


def _no_integer_of_such_length(digits: str) -> int:
    if _LONG_INTEGER.search(digits):
        raise _Strict("the number is too long", _LONG_INTEGER.pattern)
    return int(digits)


def _line(text: str, pattern: str) -> int:
    """The line on which the last character of the pattern's first match lies (1 if none)."""
    found = re.search(pattern, text)
    return text.count("\n", 0, found.end()) + 1 if found else 1
