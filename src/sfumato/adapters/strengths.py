"""Strengths of adapters: one number, or numbers per block of a UNet as in diffusers.

    1.0
    {"down": 0.5, "mid": 1.0, "up": {"block_0": 0.6, "block_1": [0.4, 0.8, 1.0]}}

What a dictionary does not mention has strength 1. A number for a half or a block holds for all of
its layers; a list has one number per layer of the block. As in diffusers, the numbers are about
transformers: the residual block beside one, and the change of size after the first one, share its
number; blocks without transformers, and the residual blocks in the middle, have strength 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

from sfumato.errors import InputError, did_you_mean

#: As users give it; see the module's docstring.
Strength = float | Mapping[str, Any]

#: Beyond this a strength is a slip, and 16-bit numbers overflow.
MAX_STRENGTH = 10_000.0

_LAYER = re.compile(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)(?:\.|$)")


def check_number(value: Any, label: str = "The strength of an adapter") -> float:
    """The number, when it can be a strength.

    Raises:
        InputError: it is no number, not finite, or huge.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{label} has to be a number but is {str(value)[:80]!r}.")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floating-point numbers
        number = math.inf
    if not abs(number) <= MAX_STRENGTH:  # so that NaN is refused
        raise InputError(
            f"{label} has to be a finite number up to {MAX_STRENGTH:g} but is {number}."
        )
    return number


def resolve(
    strength: Any,
    paths: Iterable[str],
    *,
    default: float = 1.0,
    read: Callable[..., Any] = check_number,
) -> Callable[[str], Any]:
    """A function from a layer's path to its strength.

    Args:
        strength: a number, a dictionary of blocks, or None for 1.
        paths: all layers of the network, which tell what blocks there are.
        default: the strength of what a dictionary does not mention.
        read: checks a single strength, ``(value, label) -> value``.

    Raises:
        InputError: a number is wrong, or there is no such block.
    """
    if strength is None:
        return lambda path: 1.0
    if not isinstance(strength, Mapping):
        number = read(strength)
        return lambda path: number
    depths, settings = _depths(paths), (default, read)
    for key in strength:
        if key not in ("down", "mid", "up"):
            raise InputError(
                f"Strengths per block have the keys 'down', 'mid' and 'up', not {str(key)[:40]!r}."
                f"{did_you_mean(str(key), ('down', 'mid', 'up'))}"
            )
    table = {
        (half, block, layer): number
        for half in ("down", "up")
        for block, numbers in _blocks(half, strength.get(half, default), depths[half], settings)
        for layer, number in enumerate(numbers)
    }
    (mid,) = _numbers("mid", strength.get("mid", default), 1, read)

    def at(path: str) -> Any:
        if found := _LAYER.match(path):
            return table.get((found[1], int(found[2]), int(found[4])), 1.0)
        return mid if path.startswith("mid_block.attentions.") else 1.0

    return at


def _depths(paths: Iterable[str]) -> dict[str, dict[int, int]]:
    """Number of transformers per block that has any, of both halves."""
    depths: dict[str, dict[int, int]] = {"down": {}, "up": {}}
    for path in paths:
        found = _LAYER.match(path)
        if found and found[3] == "attentions":
            blocks = depths[found[1]]
            blocks[int(found[2])] = max(blocks.get(int(found[2]), 0), int(found[4]) + 1)
    return depths


def _blocks(
    half: str, strength: Any, depths: Mapping[int, int], settings: tuple[float, Callable[..., Any]]
) -> Iterator[tuple[int, list[Any]]]:
    default, read = settings
    if not isinstance(strength, Mapping):
        strength = {f"block_{block}": strength for block in depths}
    known = {f"block_{block}": block for block in depths}
    for key in strength:
        if key not in known:
            raise InputError(
                f"Can't set a strength for '{half}.{str(key)[:40]}': the blocks with attention are "
                f"{', '.join(sorted(known)) or 'none'} there."
            )
    for key, block in known.items():
        yield block, _numbers(f"{half}.{key}", strength.get(key, default), depths[block], read)


def _numbers(label: str, strength: Any, depth: int, read: Callable[..., Any]) -> list[Any]:
    label = f"The strength for '{label}'"
    if not isinstance(strength, Sequence) or isinstance(strength, str):
        return [read(strength, label)] * depth
    if len(strength) not in (1, depth):
        raise InputError(f"{label} has {len(strength)} numbers for {depth} layers.")
    return [read(s, label) for s in (strength if len(strength) > 1 else [strength[0]] * depth)]
