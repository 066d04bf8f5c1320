"""Configurations: frozen dataclasses that read and write diffusers' JSON.

A subclass lists its fields with defaults and checks their ranges in ``validate``. It reads like an
object (``config.in_channels``) and like a mapping (``config["in_channels"]``, ``dict(config)``),
as users of diffusers expect.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, NoReturn, Self

from sfumato.errors import ConfigError, did_you_mean, printable

logger = logging.getLogger(__name__)

#: How many settings that nobody knows a warning names.
_MOST_REPORTED = 8


class FrozenDict(dict[str, Any]):
    """A read-only dictionary whose keys can be read as attributes: what users see as ``config``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The configuration has no entry '{name}'.") from None

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "A configuration is read-only. Make another scheduler with"
            " `from_config(scheduler.config, ...)`; assign to a pipeline's attributes."
        )

    __setitem__ = __delitem__ = __setattr__ = __delattr__ = __ior__ = _refuse
    pop = popitem = clear = update = setdefault = _refuse  # pyright: ignore

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


@cache
def field_names(config_class: type[Config]) -> Mapping[str, None]:
    """The fields of a configuration in their order; a mapping, since that is quick to ask."""
    return {f.name: None for f in fields(config_class) if f.name != "explicit"}


def report_unknown(owner: str, keys: Iterable[str], known: Iterable[str]) -> None:
    """Warn of settings that nothing is known by, the first few one by one.

    A file may come from a stranger, so their number and length are bounded, and nothing in them
    can look like a line of the log.
    """
    unknown = sorted(str(key) for key in keys if not str(key).startswith("_"))
    for key in unknown[:_MOST_REPORTED]:
        close = did_you_mean(key[:80], known)
        shown = printable(key)
        logger.warning("%s: the setting '%s' is unknown and has no effect.%s", owner, shown, close)
    if len(unknown) > _MOST_REPORTED:
        logger.warning("%s: so are %d others.", owner, len(unknown) - _MOST_REPORTED)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True, eq=True, repr=True)
class Config(Mapping[str, Any]):
    """Base of all configurations; see the module's docstring.

    Attributes:
        explicit: names of the fields that were given rather than left at their default.
            Swapping schedulers needs it: a default of one class is not a wish of the user.
    """

    #: Keys that other libraries write and that mean nothing here; ignored without a warning.
    ignored_keys: ClassVar[frozenset[str]] = frozenset()

    explicit: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in self:
            value = _frozen(getattr(self, name))
            if isinstance(value, float) and math.isnan(value):
                raise ConfigError(f"{type(self).__name__}: `{name}` is not a number (NaN).")
            object.__setattr__(self, name, value)
        self.validate()

    def validate(self) -> None:
        """Raise `ConfigError` if a field is out of range; subclasses override this."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping such as a parsed ``config.json``.

        Private keys (``_class_name``, ``_diffusers_version``) are dropped; unknown keys are
        dropped with a logged warning.

        Raises:
            ConfigError: when a value is out of range.
        """
        known = field_names(cls)
        kept = {k: v for k, v in values.items() if k in known}
        report_unknown(cls.__name__, values.keys() - known.keys() - cls.ignored_keys, known)
        explicit = frozenset(kept)
        if isinstance(values, Config):
            explicit &= values.explicit
        return cls(explicit=explicit, **kept)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; the changed fields count as explicit."""
        explicit = self.explicit | frozenset(changes)
        return type(self)(**{**dict(self), **changes}, explicit=explicit)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return {name: _plain(value) for name, value in self.items()}

    def __getitem__(self, key: str) -> Any:
        if key not in field_names(type(self)):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(field_names(type(self)))

    def __len__(self) -> int:
        return len(field_names(type(self)))


def require_int(config: Config, name: str, low: int, high: int) -> None:
    """Raise `ConfigError` unless the field is an ``int`` (not ``bool``) in ``low..high``."""
    check_int(f"{type(config).__name__}.{name}", getattr(config, name), low, high)


def check_int(label: str, value: object, low: int, high: int) -> None:
    """Raise `ConfigError` unless ``value`` is an ``int`` (not ``bool``) in ``low..high``."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(
            f"`{label}` has to be an integer from {low} to {high} but is {value!r:.80}."
        )


def check_choice(label: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise `ConfigError` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        options = ", ".join(repr(a) for a in allowed)
        raise ConfigError(f"`{label}` has to be one of {options} but is {str(value)[:80]!r}.")
