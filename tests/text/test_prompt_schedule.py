"""Prompts that change over the steps, have parts, and name adapters."""

from __future__ import annotations

import logging
import random

import pytest

from sfumato.errors import InputError
from sfumato.text.prompt.composition import split_parts
from sfumato.text.prompt.schedule import Earlier, parse_script
from sfumato.text.prompt.tags import LoraTag, take_tags, total_strengths


@pytest.mark.parametrize(
    ("text", "timetable"),
    [
        ("test", [(10, "test")]),
        ("", [(10, "")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [b:3 ]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [{b|d{:.5] c", [(5, "a  c"), (10, "a {b|d{ c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a::4]", [(4, "a"), (10, "")]),
        ("[:a:4]", [(4, ""), (10, "a")]),
        ("[:4]", [(4, ""), (10, "")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:-3]", [(10, "b")]),
        ("[a:b:-.5]", [(10, "b")]),
        ("[a:b:10]", [(10, "a")]),
        ("[a:b:99]", [(10, "a")]),
        ("[a:b:1.5]", [(10, "a")]),
        ("[a:b:1.]", [(10, "a")]),
        ("[a:b:+.25]", [(2, "a"), (10, "b")]),
        ("[a:b:5e-1]", [(10, "b")]),
        ("[a:b:1e9]", [(10, "a")]),
        ("[a:b:" + "9" * 500 + ".]", [(10, "a")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("[a:b]", [(10, "[a:b]")]),
        ("[a:3x]", [(10, "[a:3x]")]),
        ("[a:(3)]", [(10, "[a:(3)]")]),
        ("[x [a:b] y:3]", [(10, "[x [a:b] y:3]")]),
        ("(x [a:b:3] y:1.2)", [(3, "(x a y:1.2)"), (10, "(x b y:1.2)")]),
        ("[x (a:b:c) y:3]", [(10, "[x (a:b:c) y:3]")]),
        ("[x (a y:3]", [(10, "[x (a y:3]")]),
        ("[x ) y:3]", [(10, "[x ) y:3]")]),
        (r"[a\:b:c\]:3]", [(3, r"a\:b"), (10, r"c\]")]),
        (r"\[a:3]", [(10, r"\[a:3]")]),
        ("[a|b:x]", [(10, "[a|b:x]")]),
        ("[[a:3]", [(3, "["), (10, "[a")]),
        ("[a:3]:4]", [(3, ":4]"), (10, "a:4]")]),
        ("a|b (c|d)", [(10, "a|b (c|d)")]),
        ("[a:b:3][c:d:7]", [(3, "ac"), (7, "bc"), (10, "bd")]),
        ("a\\", [(10, "a\\")]),
    ],
)
def test_a_prompt_switches_after_a_step(text: str, timetable: list[tuple[int, str]]) -> None:
    assert parse_script(text).timetable(10) == timetable


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("[a|(b:1.1)]", ["a", "(b:1.1)"]),
        ("[fe|]male", ["female", "male"]),
        ("[fe|||]male", ["female", "male", "male", "male"]),
        ("[|]", ["", ""]),
        ("[a|[b|c]]", ["a", "c"]),
        ("[cow|cow|horse|man|siberian tiger]", ["cow", "cow", "horse", "man", "siberian tiger"]),
        ("[a\\|b|c]", ["a\\|b", "c"]),
    ],
)
def test_options_take_turns(text: str, turns: list[str]) -> None:
    expected = [(step, turns[(step - 1) % len(turns)]) for step in range(1, 11)]
    assert parse_script(text).timetable(10) == expected


def test_a_switch_inside_of_turns_is_taken_where_it_is() -> None:
    assert [text for _, text in parse_script("[a|[b:c:3]]").timetable(6)] == list("abacac")


def test_the_steps_of_a_share_grow_with_the_run() -> None:
    script = parse_script("[a:b:0.3]")
    assert [script.timetable(n)[0] for n in (1, 4, 20, 1000)] == [
        (1, "b"),
        (1, "a"),
        (6, "a"),
        (300, "a"),
    ]


def test_text_without_brackets_of_its_own_comes_back_as_it_is() -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices("ab ()|\\\n,é", k=rng.randint(0, 30)))
        assert parse_script(text).at(3, 7) == text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a cat", [("a cat", 1)]),
        ("a AND b", [("a", 1), (" b", 1)]),
        ("a AND b :1.2", [("a", 1), (" b", 1.2)]),
        ("a :.5 AND b: -2 AND c:3.", [("a", 0.5), (" b", -2), (" c", 3)]),
        ("AND", [("", 1), ("", 1)]),
        ("a ANDb AND_c and d", [("a ANDb AND_c and d", 1)]),
        ("a AND (b:1.2)", [("a", 1), (" (b:1.2)", 1)]),
        ("a AND b:1.2.3", [("a", 1), (" b:1.2.3", 1)]),
        ("a AND 1:2", [("a", 1), (" 1", 2)]),
        ("at 10:30", [("at 10:30", 1)]),
    ],
)
def test_and_parts_a_prompt(text: str, parts: list[tuple[str, float]]) -> None:
    assert split_parts(text) == parts


@pytest.mark.parametrize(
    ("text", "rest", "tags"),
    [
        ("a <lora:ink> b", "a  b", [LoraTag("ink")]),
        ("<lora:ink:0.8>", "", [LoraTag("ink", 0.8, 0.8)]),
        ("<lora:ink:0.8:0.2>", "", [LoraTag("ink", 0.8, 0.2)]),
        ("<lora:ink:te=0.5:unet=2>", "", [LoraTag("ink", 0.5, 2)]),
        ("<lora:ink:0.8:unet=2>", "", [LoraTag("ink", 0.8, 2)]),
        ("<lora:ink:te=0.5>", "", [LoraTag("ink", 0.5, 0.5)]),
        ("<lyco:ink:-1>", "", [LoraTag("ink", -1, -1)]),
        ("<lora:a:1>x<lora:b c:2>", "x", [LoraTag("a"), LoraTag("b c", 2, 2)]),
        ("a < b <fruit> <:c> <lora:> > d", "a < b <fruit> <:c> <lora:> > d", []),
        ("a <lora:ink", "a <lora:ink", []),
    ],
)
def test_tags_are_taken_out(text: str, rest: str, tags: list[LoraTag]) -> None:
    assert take_tags(text) == (rest, tags)


def test_tags_of_other_kinds_are_taken_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert take_tags("a <hypernet:x:1>") == ("a ", [])
        assert take_tags("<lora:a:1:1:8>")[1] == [LoraTag("a")]
    assert "hypernet" in caplog.text and "rank" in caplog.text


@pytest.mark.parametrize("text", ["<lora:a:x>", "<lora:a:te=>", "<lora:a:nan>", "<lora:a:1:inf>"])
def test_a_strength_that_is_no_number_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match="number"):
        take_tags(text)


def test_tags_of_one_name_add_up() -> None:
    _, tags = take_tags("<lora:a:1><lora:b:2:3><lora:a:0.5>")
    assert total_strengths(tags) == {"a": (1.5, 1.5), "b": (2, 3)}


@pytest.mark.parametrize(
    ("text", "timetable"),
    [
        ("[a:b:0.5]", [(14, "b")]),  # over before the second pass begins
        ("[a:b:10]", [(14, "b")]),
        ("[a:b:1.5]", [(10, "a"), (14, "b")]),  # half of the 20 steps, of which 14 are taken
        ("[a:b:25]", [(5, "a"), (14, "b")]),
        ("[a:b:1.9]", [(14, "a")]),
        ("[a:b:99]", [(14, "a")]),
        ("[[a:b:1.1]:c:22]", [(2, "a"), (14, "c")]),
        ("[a|b]c", [(i + 1, "ab"[i % 2] + "c") for i in range(14)]),
    ],
)
def test_steps_of_a_second_pass_count_on(text: str, timetable: list[tuple[int, str]]) -> None:
    assert parse_script(text).timetable(14, Earlier(steps=20, total=20)) == timetable
