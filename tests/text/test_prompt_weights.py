"""Weights in prompts, as A1111 and ComfyUI read them."""

from __future__ import annotations

import pytest

from sfumato.text.prompt.attention import BREAK, LARGEST_WEIGHT, Phrase, parse_attention
from sfumato.text.prompt.comfyui import parse_comfyui

HOUSE = "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky)))."


def rounded(phrases: list[Phrase]) -> list[tuple[str, float]]:
    return [(phrase.text, round(phrase.weight, 4)) for phrase in phrases]


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("unbalanced)", [("unbalanced)", 1)]),
        ("[unbalanced", [("unbalanced", 0.9091)]),
        ("unbalanced]", [("unbalanced]", 1)]),
        (r"\(literal\]", [("(literal]", 1)]),
        (r"\[\)\\", [("[)\\", 1)]),
        (r"a\b", [("ab", 1)]),
        ("\\", [("", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            HOUSE,
            [
                ("a ", 1),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
        ("", [("", 1)]),
        ("()", [("", 1)]),
        ("(a:1.2)", [("a", 1.2)]),
        ("(a: +1.2 )", [("a", 1.2)]),
        ("(a:-.5)", [("a", -0.5)]),
        ("(a:\n2.)", [("a", 2)]),
        ("((a:1.2):1.5)", [("a", 1.8)]),
        ("([a:2]:3)", [("a:2", 2.7273)]),
        ("a:1.2", [("a:1.2", 1)]),
        ("a:1.2)", [("a:1.2)", 1)]),
        ("[a:1.2]", [("a:1.2", 0.9091)]),
        ("[a:1.2)", [("a:1.2)", 0.9091)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:.)", [("a:.", 1.1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1e3)", [("a:1e3", 1.1)]),
        ("(a:0)", [("a", 0)]),
        ("(:2)b", [("b", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 0.9091)]),
        ("a (b:2", [("a ", 1), ("b:2", 1.1)]),
        ("((a)", [("a", 1.21)]),
        ("\N{CJK UNIFIED IDEOGRAPH-732B} (\N{CAT FACE}:2)", [("猫 ", 1), ("🐱", 2)]),
    ],
)  # fmt: skip
def test_a1111_weighs_phrases(text: str, phrases: list[tuple[str, float]]) -> None:
    assert rounded(parse_attention(text)) == phrases


def test_a_break_parts_phrases_whatever_brackets_are_around_it() -> None:
    assert [p.text for p in parse_attention("a BREAK b")] == ["a", "BREAK", "b"]
    assert [p.text for p in parse_attention("aBREAK break BREAKb")] == ["aBREAK break BREAKb"]
    assert parse_attention("a \n BREAK\t b")[1] is BREAK
    assert parse_attention("(a BREAK b:1.2)") == [("a", 1.2), BREAK, ("b", 1.2)]
    assert parse_attention("BREAK BREAK") == [("", 1), BREAK, ("", 1), BREAK, ("", 1)]


def test_no_nesting_makes_an_infinite_weight_or_none_at_all() -> None:
    for text in ("(" * 9000 + "a", "((a:9999999999999):99999999)", f"(a:{'9' * 400})"):
        assert parse_attention(text)[-1].weight == LARGEST_WEIGHT
    assert parse_attention("(a:-99999999)")[0].weight == -LARGEST_WEIGHT
    assert parse_attention("(" * 20_000 + "(a:0)")[-1].weight == 0
    assert 0 <= parse_attention("[" * 20_000 + "a")[0].weight < 1e-300


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("a (b) c", [("a ", 1), ("b", 1.1), (" c", 1)]),
        ("((b))", [("b", 1.21)]),
        ("((b:1.5))", [("b", 1.5)]),
        ("((b:1.5) c:2)", [("b", 1.5), (" c", 2)]),
        ("((b) c:2)", [("b", 2.2), (" c", 2)]),
        ("(b:-0.5)", [("b", -0.5)]),
        ("(b:1e1)", [("b", 10)]),
        ("(b:x)", [("b:x", 1.1)]),
        (r"\(b\) [c] BREAK d AND e", [("(b) [c] BREAK d AND e", 1)]),
        ("(b", [("(b", 1)]),
        ("b)", [("b)", 1)]),
        ("(a (b)", [("(a ", 1), ("b", 1.1)]),
        ("a\\b", [("a\\b", 1)]),
        ("", [("", 1)]),
    ],
)
def test_comfyui_weighs_phrases(text: str, phrases: list[tuple[str, float]]) -> None:
    assert rounded(parse_comfyui(text)) == phrases
