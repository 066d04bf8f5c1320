"""Prompts of several parts: ``a AND b :1.2``, each part drawn towards with its own weight.

This is composable diffusion (arXiv:2206.01714): the network is asked about each part by itself,
and the guidance adds up the answers.
"""

from __future__ import annotations

import re

from sfumato.text.prompt.attention import Phrase, as_weight

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r":\s*+([-+]?+(?:\d++\.?|\d*+\.\d++))\s*+\Z")


def split_parts(text: str) -> list[Phrase]:
    """The parts of a prompt and their weights; one of weight 1 when there is no ``AND``.

    A weight at the end counts only beside an ``AND``: "at 10:30" is a time, where A1111 would take
    30 as the weight of the whole prompt.

    >>> split_parts("a cat AND a dog :1.2")
    [Phrase(text='a cat', weight=1.0), Phrase(text=' a dog', weight=1.2)]
    """
    parts = _AND.split(text)
    if len(parts) == 1:
        return [Phrase(text, 1.0)]
    return [_weighted(part) for part in parts]


def _weighted(part: str) -> Phrase:
    colon = part.rfind(":")
    match = _WEIGHT.match(part, colon) if colon >= 0 else None
    weight = as_weight(match[1]) if match else None
    if weight is None:
        return Phrase(part.rstrip(), 1.0)
    return Phrase(part[:colon].rstrip(), weight)
