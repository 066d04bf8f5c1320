"""Ten million characters of hostile prompts: no crash, no recursion, no more than linear time."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.text.prompt.attention import LARGEST_WEIGHT, parse_attention
from sfumato.text.prompt.chunks import Vocabulary, a1111_chunks, comfyui_chunks
from sfumato.text.prompt.comfyui import parse_comfyui
from sfumato.text.prompt.composition import split_parts
from sfumato.text.prompt.schedule import parse_script
from sfumato.text.prompt.tags import take_tags

#: How many characters each hostile text has; with the random ones they are ten million in all.
LENGTH = 60_000
TOTAL = 10_000_000

HOSTILE: dict[str, Callable[[int], str]] = {
    "open round": lambda n: "(" * n,
    "open square": lambda n: "[" * n,
    "closed round": lambda n: ")" * n,
    "closed square": lambda n: "]" * n,
    "nested round": lambda n: "(" * (n // 2) + ")" * (n // 2),
    "nested square": lambda n: "[" * (n // 2) + "]" * (n // 2),
    "nested weights": lambda n: "(" * (n // 5) + "a" + ":2.)" * (n // 5),
    "nested switches": lambda n: "[a:" * (n // 6) + "b" + ":3]" * (n // 6),
    "nested turns": lambda n: "[a|" * (n // 4) + "b" + "]" * (n // 4),
    "crossing": lambda n: "([" * (n // 4) + ")]" * (n // 4),
    "colons": lambda n: ":" * n,
    "colons in a bracket": lambda n: "[" + ":" * n + "3]",
    "pipes": lambda n: "|" * n,
    "pipes in a bracket": lambda n: "[" + "|" * n + "]",
    "colon and spaces": lambda n: ": " * (n // 2),
    "one colon, many spaces": lambda n: "(a:" + " " * n + "1)",
    "digits": lambda n: "(a:" + "1" * n + ")",
    "dots": lambda n: "[a:" + "." * n + "]",
    "backslashes": lambda n: "\\" * n,
    "escapes": lambda n: "\\(\\[" * (n // 4),
    "spaces": lambda n: " " * n,
    "breaks": lambda n: "BREAK " * (n // 6),
    "nearly breaks": lambda n: (" " * 5000 + "BREA") * (n // 5004),
    "ands": lambda n: " AND" * (n // 4),
    "and, colons": lambda n: "a AND " + ": 1 " * (n // 4),
    "tags": lambda n: "<lora:a:1>" * (n // 10),
    "open tags": lambda n: "<lora:" * (n // 6),
    "empty tags": lambda n: "<lora:>" * (n // 7),
    "angles": lambda n: "<" * n,
    "one word": lambda n: "a" * n,
    "commas": lambda n: "a," * (n // 2),
}


def some_letters(text: str) -> list[int]:
    """A tokenizer for which every twentieth letter is a token."""
    return [ord(letter) for letter in text[::20]]


VOCABULARY = Vocabulary(some_letters, begin=-1, end=-2, pad=-2, comma=ord(","), several={})


def read_in_all_ways(text: str) -> None:
    rest, _ = take_tags(text)
    for part in split_parts(rest):
        assert abs(part.weight) <= LARGEST_WEIGHT
    script = parse_script(text)
    assert len(script.at(3, 20)) <= len(text)
    for phrases, chunks in (
        (parse_attention(text), a1111_chunks),
        (parse_comfyui(text), comfyui_chunks),
    ):
        assert all(abs(phrase.weight) <= LARGEST_WEIGHT for phrase in phrases)
        assert all(len(chunk.ids) == 77 for chunk in chunks(phrases, VOCABULARY))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_prompt_is_read(name: str) -> None:
    read_in_all_ways(HOSTILE[name](LENGTH))


def test_random_prompts_are_read() -> None:
    rng = random.Random(0)
    pieces = [*"()[]:|\\,<> ab1.\n", "BREAK", " AND ", ":1.2)", ":.5]", "[a|", "é", "\0"]
    pieces += ["a red cat, " * 20, "\t \n" * 50, "12345.67890" * 20, "a:b;c " * 30]
    left = TOTAL - LENGTH * len(HOSTILE)
    while left > 0:
        text = "".join(rng.choices(pieces, k=rng.choice([10, 1_000, 20_000])))
        left -= len(text)
        read_in_all_ways(text)


@given(st.text(st.sampled_from("()[]:|\\ ab1.,BREAKND<>lora\n"), max_size=60))
def test_no_short_prompt_fails(text: str) -> None:
    read_in_all_ways(text.replace("lora:", "lora"))


def test_a_deep_script_can_be_thrown_away() -> None:
    script = parse_script(HOSTILE["nested switches"](600_000))
    assert script.at(4, 20) == "b" and script.at(1, 20) == "a"
    assert script.timetable(20) == [(3, "a"), (20, "b")]
