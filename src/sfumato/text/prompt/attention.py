"""Weights in a prompt as A1111 reads them: ``(more)``, ``[less]``, ``(exactly:1.3)``, ``BREAK``.

A text becomes phrases, each with a weight; `chunks` turns them into tokens. Brackets only multiply
what lies between them, so a round and a square pair may overlap, and one that is never closed
reaches to the end. The time is linear in the text, however deep it is nested.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

#: What a pair of brackets multiplies with, or divides by.
STEP = 1.1
#: Larger weights count as this one, so that no bracket makes an infinity.
LARGEST_WEIGHT = 1e6

_TOKEN = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\]?)                      # without its backslash; alone it is dropped
  | :\s*+(?P<weight>[+-]?[.\d]++)\s*+\)             # the end of (text:1.3)
  | (?P<bracket>[()\[\]])
  | (?P<text>[^\\()\[\]:]+ | :)
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")


class Phrase(NamedTuple):
    """Text and how much weight it has; 1 is normal."""

    text: str
    weight: float


#: Stands between two phrases: what follows begins a new chunk. Compare with ``is``.
BREAK = Phrase("BREAK", -1.0)


def parse_attention(text: str) -> list[Phrase]:
    """The phrases of a prompt, neighbours of one weight joined; at least one.

    >>> [(text, round(weight, 3)) for text, weight in parse_attention("a ((cat)) [on] (x:2)")]
    [('a ', 1.0), ('cat', 1.21), (' ', 1.0), ('on', 0.909), (' ', 1.0), ('x', 2.0)]
    >>> parse_attention("a BREAK b")[1] is BREAK
    True
    """
    return joined(_weigh(*_read(text)))


def joined(phrases: Iterable[Phrase]) -> list[Phrase]:
    """Phrases with neighbours of the same weight in one; never across a `BREAK`."""
    merged: list[Phrase] = []
    texts: list[str] = []
    weight = 1.0
    for phrase in chain(phrases, [BREAK]):
        if texts and (phrase is BREAK or phrase.weight != weight):
            merged.append(Phrase("".join(texts), weight))
            texts = []
        if phrase is BREAK:
            merged.append(BREAK)
        else:
            texts.append(phrase.text)
            weight = phrase.weight
    merged.pop()
    return merged or [Phrase("", 1.0)]


class _Brackets:
    """The pairs of one kind, in the order in which they open; every one is closed at last."""

    def __init__(self, usual: float) -> None:
        self.usual = usual
        self.factors = array("d")
        self._open = array("q")

    def open(self) -> None:
        self._open.append(len(self.factors))
        self.factors.append(self.usual)

    def close(self, factor: float | None = None) -> bool:
        """Whether there was one to close; ``factor`` is in place of the usual."""
        if not self._open:
            return False
        index = self._open.pop()
        self.factors[index] = self.usual if factor is None else factor
        return True


#: What `_read` finds between texts.
_OPEN_ROUND, _OPEN_SQUARE, _CLOSE_ROUND, _CLOSE_SQUARE = range(4)
_Event = str | int | Phrase


def _read(text: str) -> tuple[list[_Event], _Brackets, _Brackets]:
    """Texts, breaks and brackets in the order of the text, and what the brackets multiply with."""
    round_, square = _Brackets(STEP), _Brackets(1 / STEP)
    events: list[_Event] = []
    for match in _TOKEN.finditer(text):
        kind, found = match.lastgroup, match[0]
        if kind == "escaped":
            events.append(match["escaped"])
        elif found == "(":
            round_.open()
            events.append(_OPEN_ROUND)
        elif found == "[":
            square.open()
            events.append(_OPEN_SQUARE)
        elif found == "]" and square.close():
            events.append(_CLOSE_SQUARE)
        elif found == ")" and round_.close():
            events.append(_CLOSE_ROUND)
        elif kind == "weight":
            events.extend(_weighted_end(match, round_))
        else:
            events.extend(_split_at_breaks(found))
    return events, round_, square


def _weighted_end(match: re.Match[str], brackets: _Brackets) -> list[_Event]:
    """``:1.3)`` closes with that factor. What is no number, as ``:1.2.3)``, is text and closes."""
    weight = as_weight(match["weight"])
    if weight is not None:
        return [_CLOSE_ROUND] if brackets.close(weight) else [match[0]]
    return [match[0][:-1], _CLOSE_ROUND] if brackets.close() else [match[0]]


def as_weight(text: str) -> float | None:
    """A number within bounds, or None for what is none."""
    try:
        return bounded(float(text))
    except ValueError:
        return None


def bounded(weight: float) -> float:
    """``weight``, or the nearest that is not beyond `LARGEST_WEIGHT`."""
    return max(-LARGEST_WEIGHT, min(LARGEST_WEIGHT, weight))


def _split_at_breaks(text: str) -> list[_Event]:
    """Texts with `BREAK` between them, without the spaces around the word."""
    if "BREAK" not in text:
        return [text]
    parts = _BREAK.split(text)
    events: list[_Event] = []
    for index, part in enumerate(parts):
        if index:
            events.append(BREAK)
            part = part.lstrip()
        events.append(part.rstrip() if index + 1 < len(parts) else part)
    return events


def _weigh(events: list[_Event], round_: _Brackets, square: _Brackets) -> Iterable[Phrase]:
    """Each text with the product of the brackets around it."""
    factors = iter(round_.factors), iter(square.factors)
    products = array("d", [1.0]), array("d", [1.0])
    for event in events:
        if isinstance(event, str):
            yield Phrase(event, bounded(products[0][-1] * products[1][-1]))
        elif isinstance(event, Phrase):
            yield event
        elif event in (_CLOSE_ROUND, _CLOSE_SQUARE):
            products[event - _CLOSE_ROUND].pop()
        else:
            inner = products[event][-1] * next(factors[event])
            products[event].append(inner if math.isfinite(inner) else math.copysign(1e300, inner))
