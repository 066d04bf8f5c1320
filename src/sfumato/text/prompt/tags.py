"""Tags in a prompt that name adapters: ``<lora:name:0.8>``; they are taken out of the text."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sfumato.errors import InputError

logger = logging.getLogger(__name__)

#: Kinds of tags that name an adapter; their files are told apart by what is in them.
_KINDS = frozenset({"lora", "lyco"})
_START = re.compile(r"<(\w++):")
_KEYWORDS = ("te", "unet", "dyn")
#: No more than this is shown of a tag.
_SHOWN = 80


@dataclass(frozen=True)
class LoraTag:
    """One tag.

    Attributes:
        name: of the adapter.
        text_encoder, unet: how strongly it acts there; 1 is as it was trained.
    """

    name: str
    text_encoder: float = 1.0
    unet: float = 1.0


def take_tags(text: str) -> tuple[str, list[LoraTag]]:
    """The text without its tags, and the tags in their order.

    ``<lora:name:te:unet>`` or ``<lora:name:te=0.5:unet=1>``; a single number is for both. Tags of
    another kind are taken out as well, with a warning.

    Raises:
        InputError: a strength is no number.

    >>> take_tags("a cat <lora:ink:0.5>")
    ('a cat ', [LoraTag(name='ink', text_encoder=0.5, unet=0.5)])
    """
    texts: list[str] = []
    tags: list[LoraTag] = []
    others: dict[str, None] = {}
    done = place = 0
    while (match := _START.search(text, place)) is not None:
        place = match.end()
        end = text.find(">", place)
        if end < 0:
            break
        if end == place:
            continue
        texts.append(text[done : match.start()])
        done = place = end + 1
        words = text[match.end() : end]
        if match[1] in _KINDS:
            tags.append(_read(words))
        else:
            others[match[1][:_SHOWN]] = None
    texts.append(text[done:])
    if others:
        named = ", ".join(f"<{kind}:...>" for kind in list(others)[:5])
        logger.warning("Tags of kinds that are not known were left out: %s.", named)
    return "".join(texts), tags


def total_strengths(tags: list[LoraTag]) -> Mapping[str, tuple[float, float]]:
    """Name to strength in the text encoder and in the UNet; tags of one name add up."""
    totals: dict[str, tuple[float, float]] = {}
    for tag in tags:
        text_encoder, unet = totals.get(tag.name, (0.0, 0.0))
        totals[tag.name] = text_encoder + tag.text_encoder, unet + tag.unet
    return totals


def _read(words: str) -> LoraTag:
    name, *rest = words.split(":")
    numbers: list[str] = []
    named: dict[str, str] = {}
    for word in rest:
        key, equals, value = word.partition("=")
        if equals and key in _KEYWORDS:
            named[key] = value
        else:
            numbers.append(word)
    if "dyn" in named or len(numbers) > 2:
        tag = f"<lora:{words[:_SHOWN]}>"
        logger.warning("The tag %r asks for a rank of its own, which is ignored.", tag)
    text_encoder = _number(named.get("te", numbers[0] if numbers else "1"), words)
    default = numbers[1] if len(numbers) > 1 else None
    unet = named.get("unet", default)
    return LoraTag(name, text_encoder, text_encoder if unet is None else _number(unet, words))


def _number(text: str, words: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        tag = f"<lora:{words[:_SHOWN]}>"
        raise InputError(
            f"The tag {tag!r} has {text[:_SHOWN]!r} where a number should be.",
            hint="For example <lora:name:0.8>.",
        )
    return value
