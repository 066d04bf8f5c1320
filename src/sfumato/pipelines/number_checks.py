"""Checks of numbers and other plain arguments, for calls with torch and without."""

from __future__ import annotations

import math
import operator
from itertools import pairwise
from typing import Any

from sfumato.errors import InputError

MAX_SIDE = 16_384
MAX_IMAGES_PER_PROMPT = 1_024


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """``value`` as an int; `InputError` for a bool, a fraction, text, or out of range."""
    number = _as_int(value)
    if number is None or not low <= number <= high:
        raise InputError(
            f"`{name}` has to be an integer from {low} to {high} but is {shown(value)}."
        )
    return number


def _as_int(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    try:
        return operator.index(value)
    except TypeError:
        return None


def finite_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """``value`` as a float; `InputError` for a bool, NaN, infinity, text, or out of range."""
    try:
        number = math.nan if isinstance(value, bool | str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or not low <= number <= high:
        bounds = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
        raise InputError(f"`{name}` has to be a finite number{bounds} but is {shown(value)}.")
    return number


def shown(value: Any) -> str:
    """A value and its type, as messages show them."""
    text = str(value)
    return f"{text[:80]} of type {type(value).__name__}"


def image_size(height: Any, width: Any) -> tuple[int, int]:
    """Height and width in pixels, or `InputError`."""
    rows, columns = _as_int(height) or 0, _as_int(width) or 0
    if any(side < 8 or side > MAX_SIDE or side % 8 for side in (rows, columns)):
        raise InputError(
            "`height` and `width` have to be divisible by 8 but are"
            f" {str(height)[:80]} and {str(width)[:80]}.",
            hint=f"Each is an integer from 8 to {MAX_SIDE}.",
        )
    return rows, columns


def check_callable(name: str, value: Any) -> None:
    """Raise `InputError` unless ``value`` can be called, or is None."""
    if value is not None and not callable(value):
        raise InputError(f"`{name}` has to be callable but is {shown(value)}.")


def check_strength(strength: Any) -> None:
    """How much of a picture to draw anew."""
    number = isinstance(strength, int | float) and not isinstance(strength, bool)
    if not number or not 0 <= strength <= 1:  # which a NaN is not either
        raise InputError(f"The value of strength should in [0.0, 1.0] but is {shown(strength)}.")


def check_descending(name: str, values: Any, low: float, high: float) -> None:
    """Custom timesteps or sigmas: finite numbers in range, each smaller than the one before."""
    if values is None:
        return
    try:
        numbers = [finite_number(name, value, low, high) for value in values]
    except TypeError:
        raise InputError(f"`{name}` has to be a list of numbers but is {shown(values)}.") from None
    if not numbers:
        raise InputError(f"`{name}` is empty.")
    for before, after in pairwise(numbers):
        if after >= before:
            raise InputError(
                f"`{name}` has to be in descending order without repetition, but {before:g} is"
                f" followed by {after:g}."
            )


def check_steps(number: Any, timesteps: Any, sigmas: Any, train_steps: int) -> None:
    """How many steps, or which; ``train_steps`` is the largest number there can be."""
    if timesteps is None and sigmas is None:
        whole_number("num_inference_steps", number, 1, train_steps)
    check_descending("timesteps", timesteps, 0, train_steps - 1)
    check_descending("sigmas", sigmas, 0, math.inf)


def optional_dict(name: str, value: Any) -> dict[str, Any] | None:
    """``value`` when it is a dict or None, else `InputError`."""
    if value is not None and not isinstance(value, dict):
        raise InputError(f"`{name}` has to be a dict but is {shown(value)}.")
    return value
