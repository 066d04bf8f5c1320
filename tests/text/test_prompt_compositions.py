"""Random prompts whose meaning is known before they are written.

A tree of brackets is made first; one function writes it as a prompt, another says what each letter
weighs at each step. Neither knows the parsers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from sfumato.text.prompt.attention import BREAK, Phrase, parse_attention
from sfumato.text.prompt.comfyui import parse_comfyui
from sfumato.text.prompt.composition import split_parts
from sfumato.text.prompt.schedule import parse_script
from sfumato.text.prompt.tags import LoraTag, take_tags

STEPS = 12
#: What text is made of: as it is written, and what it says.
LETTERS = [(c, c) for c in "abcdé猫, .7-"] + [("\\" + c, c) for c in "()[]\\"]


@dataclass(frozen=True)
class Text:
    pairs: tuple[tuple[str, str], ...]


class Plain(Text):
    """Text without a backslash of its own, which ComfyUI cannot have before a bracket."""


@dataclass(frozen=True)
class Round:
    """``(parts)`` or ``(parts:weight)``."""

    parts: Sequence[Node]
    weight: str | None


@dataclass(frozen=True)
class Square:
    parts: Sequence[Node]


@dataclass(frozen=True)
class Switch:
    """``[before:after:when]``; without ``before`` it is ``[after:when]``."""

    before: Sequence[Node] | None
    after: Sequence[Node]
    when: str


@dataclass(frozen=True)
class Turns:
    options: Sequence[Sequence[Node]]


@dataclass(frozen=True)
class Break:
    pass


Node = Text | Round | Square | Switch | Turns | Break
Letters = Iterator[tuple[str, float]]


def some_text(r: random.Random, kind: type[Text]) -> Text:
    letters = LETTERS[:-1] if kind is Plain else LETTERS
    return kind(tuple(r.choices(letters, k=r.randint(1, 6))))


def some_weight(r: random.Random) -> str:
    return r.choice(["1.3", "0.5", ".25", "2", "-1.5", "+1.1", "0", "3."])


def some_moment(r: random.Random) -> str:
    moments = [
        "0",
        "1",
        "5",
        "11",
        "12",
        "99",
        "-2",
        ".25",
        "0.5",
        "1.0",
        "0.0",
        "+.75",
        " 3",
        "4 ",
    ]
    return r.choice(moments)


def composed(r: random.Random, depth: int, kinds: Sequence[type]) -> list[Node]:
    """Some nodes one after the other; never two texts, which would be one."""
    made: list[Node] = []
    for _ in range(r.randint(1, 4)):
        kind = r.choice(kinds) if depth else kinds[0]
        if issubclass(kind, Text):
            if not made or not isinstance(made[-1], Text):
                made.append(some_text(r, kind))
        elif kind is Round:
            weight = r.choice([None, some_weight(r)])
            made.append(Round(composed(r, depth - 1, kinds), weight))
        elif kind is Square:
            made.append(Square(composed(r, depth - 1, kinds)))
        elif kind is Switch:
            before = r.choice([None, [], composed(r, depth - 1, kinds)])
            after = r.choice([[], composed(r, depth - 1, kinds)])
            made.append(Switch(before, after, some_moment(r)))
        elif kind is Turns:
            several = range(r.randint(2, 4))
            made.append(Turns([r.choice([[], composed(r, depth - 1, kinds)]) for _ in several]))
        else:
            made.append(Break())
    return made


def written(nodes: Sequence[Node]) -> str:
    return "".join(map(_written, nodes))


def _written(node: Node) -> str:
    match node:
        case Text(pairs):
            return "".join(pair[0] for pair in pairs)
        case Round(parts, weight):
            return f"({written(parts)})" if weight is None else f"({written(parts)}:{weight})"
        case Square(parts):
            return f"[{written(parts)}]"
        case Switch(None, after, when):
            return f"[{written(after)}:{when}]"
        case Switch(before, after, when):
            return f"[{written(before or [])}:{written(after)}:{when}]"
        case Turns(options):
            return f"[{'|'.join(map(written, options))}]"
        case _:
            return " BREAK "


def said(nodes: Sequence[Node], step: int, weight: float = 1.0) -> Letters:
    """Each letter and its weight at a step, as A1111 has it; a break has the letter "" ."""
    for node in nodes:
        match node:
            case Text(pairs):
                yield from ((pair[1], weight) for pair in pairs)
            case Round(parts, None):
                yield from said(parts, step, weight * 1.1)
            case Round(parts, str() as own):
                yield from said(parts, step, weight * float(own))
            case Square(parts):
                yield from said(parts, step, weight / 1.1)
            case Switch(before, after, when):
                last = float(when) * STEPS if "." in when else float(when)
                yield from said((before or []) if step <= int(last) else after, step, weight)
            case Turns(options):
                yield from said(options[(step - 1) % len(options)], step, weight)
            case _:
                yield "", -1.0


def said_by_comfyui(nodes: Sequence[Node], weight: float = 1.0) -> Letters:
    """Likewise as ComfyUI has it: an own weight does not multiply, and squares are text."""
    for node in nodes:
        match node:
            case Round(parts, None):
                yield from said_by_comfyui(parts, weight * 1.1)
            case Round(parts, str() as own):
                yield from said_by_comfyui(parts, float(own))
            case Text(pairs):
                for pair in pairs:
                    known = pair[1] in "()" or len(pair[0]) == 1
                    yield from ((letter, weight) for letter in (pair[1] if known else pair[0]))
            case _:
                raise AssertionError(node)


def letters(phrases: Sequence[Phrase], *, spaces: bool = True) -> list[tuple[str, float]]:
    """Phrases letter by letter; breaks as in `said`."""
    found: list[tuple[str, float]] = []
    for phrase in phrases:
        found += [("", -1.0)] if phrase is BREAK else [(c, phrase.weight) for c in phrase.text]
    return close(found, spaces=spaces)


def close(found: Sequence[tuple[str, float]], *, spaces: bool = True) -> list[tuple[str, float]]:
    return [(c, round(weight, 6)) for c, weight in found if spaces or not c.isspace()]


@pytest.mark.parametrize("seed", range(4))
def test_weights_switches_and_turns_mean_what_was_composed(seed: int) -> None:
    r = random.Random(seed)
    for _ in range(150):
        nodes = composed(r, 3, [Text, Round, Square, Switch, Turns])
        prompt = written(nodes)
        script = parse_script(prompt)
        table = script.timetable(STEPS)
        for step in range(1, STEPS + 1):
            expected = close([*said(nodes, step)])
            text = script.at(step, STEPS)
            assert letters(parse_attention(text)) == expected, (prompt, step)
            planned = next(planned for last, planned in table if step <= last)
            assert planned == text, (prompt, step)


def test_breaks_part_what_was_composed() -> None:
    r = random.Random(5)
    for _ in range(300):
        nodes = composed(r, 3, [Text, Round, Square, Break])
        expected = close([*said(nodes, 1)], spaces=False)
        assert letters(parse_attention(written(nodes)), spaces=False) == expected, written(nodes)


def test_comfyui_weighs_what_was_composed() -> None:
    r = random.Random(6)
    for _ in range(600):
        nodes = composed(r, 4, [Plain, Round])
        expected = close([*said_by_comfyui(nodes)])
        assert letters(parse_comfyui(written(nodes))) == expected, written(nodes)


def test_parts_and_tags_are_told_apart_from_what_was_composed() -> None:
    r = random.Random(7)
    for _ in range(300):
        texts, weights, tags = [], [], []
        prompts: list[str] = []
        for _ in range(r.randint(2, 4)):
            nodes = composed(r, 2, [Text, Round, Square, Switch, Turns])
            weight = r.choice([None, some_weight(r)])
            tag = LoraTag(r.choice(["ink", "a b", "x.y"]), *r.choice([(0.5, 0.5), (2.0, -1.0)]))
            tags.append(tag)
            texts.append(written(nodes))
            weights.append(1.0 if weight is None else float(weight))
            own = f"<lora:{tag.name}:{tag.text_encoder}:{tag.unet}>"
            cut = r.choice([0, len(texts[-1])])
            prompt = texts[-1][:cut] + own + texts[-1][cut:]
            prompts.append(prompt if weight is None else f"{prompt} :{weight}")
        rest, found = take_tags(" AND ".join(prompts))
        assert found == tags
        parts = split_parts(rest)
        assert [part.weight for part in parts] == weights, rest
        assert [part.text.strip() for part in parts] == [text.strip() for text in texts], rest
