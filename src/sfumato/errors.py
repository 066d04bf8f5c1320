"""Every error that sfumato raises on purpose.

    SfumatoError
    ├── ConfigError        (ValueError)   a configuration file or keyword is wrong
    ├── CheckpointError    (OSError)      a weight file is missing, damaged or of another model
    │   ├── WeightsMismatchError          the file is sound, but its tensors do not fit the network
    │   ├── AdapterError       (ValueError) a LoRA or its kin is damaged or made for another model
    │   ├── HubError                      a hub cannot be reached, or refuses what was asked for
    │   └── ModelNotFoundError (ValueError) there is no model of that name
    ├── TokenizerError     (ValueError)   a vocabulary cannot be used
    ├── InputError         (ValueError)   an argument is out of range or contradicts another
    ├── UnknownKeywordError (TypeError)   a call has no such keyword; the message names the closest
    ├── DatasetError       (ValueError)   a folder of training pictures cannot be used
    ├── ImageError         (ValueError)   a picture cannot be decoded or is too large
    ├── NumericalError     (RuntimeError) NaN or infinity appeared where numbers were expected
    └── MissingDependencyError (ModuleNotFoundError) an optional package is needed for this feature

Each carries an optional ``hint``: one sentence that says what to do about it. The classes also
derive from the built-in error that users of diffusers would catch in the same place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

#: Letters of a message.
_LONGEST = 4000

#: Control characters but for the line break, half surrogates, and what turns text around.
_UNPRINTABLE = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def _escaped(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def printable(value: object, limit: int = 80) -> str:
    """Text from a file as messages and logs show it: cut, on one line, nothing but letters.

    >>> printable("a\\nb\\x1b[2J")
    'a\\\\nb\\\\x1b[2J'
    """
    return _UNPRINTABLE.sub(_escaped, str(value)[:limit]).replace("\n", "\\n")


class SfumatoError(Exception):
    """Base of all errors raised on purpose.

    What a message quotes may come from a stranger's file: control characters are escaped, and
    what is longer than any message should be is cut.

    Args:
        message: what is wrong and what is allowed.
        hint: what to do about it, one sentence.

    >>> str(SfumatoError("The file is empty.", hint="Download it again."))
    'The file is empty. Download it again.'
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        message = _UNPRINTABLE.sub(_escaped, message)
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST - 100]} … {message[-90:]}"
        super().__init__(f"{message} {hint}" if hint else message)
        self.message = message
        self.hint = hint


class ConfigError(SfumatoError, ValueError):
    """A configuration file or keyword is wrong."""


class CheckpointError(SfumatoError, OSError):
    """A weight file is missing, damaged, or not what its name says."""


class WeightsMismatchError(CheckpointError):
    """A sound weight file whose tensors do not fit the network."""


class AdapterError(CheckpointError, ValueError):
    """A LoRA, or a file of its kin, that is damaged or was made for another model."""


class HubError(CheckpointError):
    """A hub of models that cannot be reached, or does not give what was asked for."""


class ModelNotFoundError(CheckpointError, ValueError):
    """No folder, or not the files that were asked for, where a model should be."""


class TokenizerError(SfumatoError, ValueError):
    """A vocabulary that cannot be used."""


class InputError(SfumatoError, ValueError):
    """An argument of a call is out of range or contradicts another."""


class UnknownKeywordError(SfumatoError, TypeError):
    """A keyword that the call does not have."""


class DatasetError(SfumatoError, ValueError):
    """A folder of training pictures that cannot be used."""


class ImageError(SfumatoError, ValueError):
    """A picture that cannot be decoded, or is too large to decode safely."""


class NumericalError(SfumatoError, RuntimeError):
    """NaN or infinity where numbers were expected."""


class MissingDependencyError(SfumatoError, ModuleNotFoundError):
    """An optional package that a feature needs is not installed."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A clause that names the closest known word, or an empty string.

    >>> did_you_mean("promt", ["prompt", "height"])
    " Did you mean 'prompt'?"
    """
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
