"""Range checks of network configurations, made before anything is allocated.

A configuration may come from a stranger. Each bound is far above every published network, and far
below what would exhaust a machine through one layer.
"""

from __future__ import annotations

from collections.abc import Iterable

from sfumato.config import Config, check_int
from sfumato.errors import ConfigError

MAX_CHANNELS = 16_384
MAX_BLOCKS = 16
MAX_LAYERS = 64
MAX_PARAMETERS = 20_000_000_000


def label(config: Config, name: str) -> str:
    """How an error names a field."""
    return f"{type(config).__name__}.{name}"


def check_ints(config: Config, names: Iterable[str], low: int, high: int) -> None:
    """Each named field is an integer in ``low..high``."""
    for name in names:
        check_int(label(config, name), config[name], low, high)


def check_flags(config: Config, names: Iterable[str]) -> None:
    """Each named field is true or false, or a list of such."""
    for name in names:
        value = config[name]
        if not all(isinstance(v, bool) for v in (value if isinstance(value, tuple) else [value])):
            raise ConfigError(
                f"`{label(config, name)}` has to be true or false but is {config[name]!r:.80}."
            )


def check_number(config: Config, name: str, low: float, high: float) -> None:
    """The field is a finite number in ``low..high``."""
    value = config[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # which no NaN does
        raise ConfigError(
            f"`{label(config, name)}` has to be a number from {low:g} to {high:g} "
            f"but is {value!r:.80}."
        )


def check_tuple(config: Config, name: str, length: int | None = None) -> None:
    """The field is a list, of ``length`` entries if given and of 1 to `MAX_BLOCKS` otherwise."""
    value = config[name]
    if not isinstance(value, tuple) or not 1 <= len(value) <= MAX_BLOCKS:
        raise ConfigError(
            f"`{label(config, name)}` has to be a list of 1 to {MAX_BLOCKS} entries "
            f"but is {value!r:.80}."
        )
    if length is not None and len(value) != length:
        raise ConfigError(
            f"`{label(config, name)}` has to have {length} entries, one per block, "
            f"but has {len(value)}."
        )


def check_channels(config: Config, name: str, groups: int | None) -> None:
    """The field is a list of channel counts, each divisible into ``groups``."""
    check_tuple(config, name)
    for channels in config[name]:
        check_int(label(config, name), channels, 1, MAX_CHANNELS)
        if groups is not None and channels % groups:
            raise ConfigError(
                f"`{label(config, name)}` has to hold multiples of the number of "
                f"normalisation groups ({groups}) but holds {channels}."
            )


def check_size(config: Config, parameters: int) -> None:
    """The network, of about this many parameters, is of a size that somebody could have trained."""
    if parameters > MAX_PARAMETERS:
        raise ConfigError(
            f"{type(config).__name__} describes a network of about {parameters:.1e} parameters; "
            f"at most {MAX_PARAMETERS:.0e} are allowed."
        )
