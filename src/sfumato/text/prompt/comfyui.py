"""Weights in a prompt as ComfyUI reads them: ``(more)`` and ``(exactly:1.3)``.

Unlike in `attention`, an explicit weight does not multiply with the brackets around it, square
brackets and the words ``BREAK`` and ``AND`` are text, and so is a bracket without its other half.
"""

from __future__ import annotations

import re
from array import array

from sfumato.text.prompt.attention import STEP, Phrase, bounded, joined

_TOKEN = re.compile(r"\\[()]|[()]|[^\\()]+|\\")
_TAIL = re.compile(r":\s*+([+-]?+(?:\d++\.?+\d*+|\.\d++)(?:[eE][+-]?+\d++)?+)\s*+\Z")


def parse_comfyui(text: str) -> list[Phrase]:
    r"""The phrases of a prompt; at least one.

    >>> [tuple(phrase) for phrase in parse_comfyui(r"a (b (c:1.5)) \(d\) [e]")]
    [('a ', 1.0), ('b ', 1.1), ('c', 1.5), (' (d) [e]', 1.0)]
    """
    tokens = _TOKEN.findall(text)
    partner = _pairs(tokens)
    phrases: list[Phrase] = []
    weights, tails = array("d", [1.0]), array("q", [-1])
    for place, token in enumerate(tokens):
        if token == "(" and partner[place] >= 0:
            weight, tail = _inside(tokens, partner[place], weights[-1])
            weights.append(weight)
            tails.append(tail)
        elif token == ")" and partner[place] >= 0:
            weights.pop()
            tails.pop()
        elif token in (r"\(", r"\)"):
            phrases.append(Phrase(token[1], weights[-1]))
        else:
            cut = token[: token.rindex(":")] if place == tails[-1] else token
            phrases.append(Phrase(cut, weights[-1]))
    return joined(phrases)


def _pairs(tokens: list[str]) -> array[int]:
    """For each place, the place of the bracket's other half; -1 where there is none."""
    open_, partner = array("q"), array("q", [-1]) * len(tokens)
    for place, token in enumerate(tokens):
        if token == "(":
            open_.append(place)
        elif token == ")" and open_:
            start = open_.pop()
            partner[start], partner[place] = place, start
    return partner


def _inside(tokens: list[str], end: int, outer: float) -> tuple[float, int]:
    """The weight between brackets, and the place of the text that ends with it (or -1)."""
    match = _TAIL.search(tokens[end - 1]) if tokens[end - 1] not in "()" else None
    if match is None:
        return bounded(outer * STEP), -1
    return bounded(float(match[1])), end - 1
