"""Prompts of any length in the text encoder's windows."""

from __future__ import annotations

import random

import pytest

from sfumato.text.prompt.attention import parse_attention
from sfumato.text.prompt.chunks import Chunk, Vocabulary, a1111_chunks, comfyui_chunks
from sfumato.text.prompt.comfyui import parse_comfyui

BEGIN, END, PAD, COMMA = -1, -2, -3, 44


def encode(text: str) -> list[int]:
    """A token for each character of a word, a comma being one of its own; "<e>" is three."""
    ids: list[int] = []
    for word in text.replace(",", " , ").split():
        ids += [500, 501, 502] if word == "<e>" else [ord(letter) for letter in word]
    return ids


WORDS = Vocabulary(encode, BEGIN, END, PAD, COMMA, several={500: (500, 501, 502)})


def a1111(text: str) -> list[Chunk]:
    return a1111_chunks(parse_attention(text), WORDS)


def held(chunk: Chunk) -> str:
    """The letters of a chunk, after looking at its frame."""
    end = chunk.ids.index(END)
    assert chunk.ids[0] == BEGIN and len(chunk.ids) == len(chunk.weights) == 77
    assert set(chunk.ids[end + 1 :]) <= {PAD}
    assert {chunk.weights[0], *chunk.weights[end:]} == {1.0}
    return "".join(chr(token) for token in chunk.ids[1:end])


def test_an_empty_prompt_is_one_chunk_without_words() -> None:
    assert [held(chunk) for chunk in a1111("")] == [""]
    assert [held(chunk) for chunk in comfyui_chunks(parse_comfyui(" "), WORDS)] == [""]


def test_weights_go_with_their_tokens() -> None:
    (chunk,) = a1111("ab (cd:1.5) e")
    assert chunk.weights[:7] == (1, 1, 1, 1.5, 1.5, 1, 1)


@pytest.mark.parametrize(
    ("length", "sizes"), [(74, [74]), (75, [75]), (76, [75, 1]), (151, [75, 75, 1])]
)
def test_a_chunk_holds_75_tokens(length: int, sizes: list[int]) -> None:
    assert [len(held(chunk)) for chunk in a1111("x" * length)] == sizes


@pytest.mark.parametrize(
    ("before", "after", "sizes"),
    [
        (70, 10, [71, 10]),  # a comma near the edge ends the chunk
        (74, 10, [75, 10]),  # right at the edge
        (75, 10, [75, 11]),  # behind it: the comma begins the next chunk
        (55, 25, [56, 25]),  # the farthest that still counts
        (54, 25, [75, 5]),  # too far away
        (70, 4, [75]),  # everything fits
        (70, 90, [71, 75, 15]),
    ],
)
def test_a_comma_near_the_edge_ends_a_chunk(before: int, after: int, sizes: list[int]) -> None:
    chunks = a1111("x" * before + "," + "y" * after)
    assert [len(held(chunk)) for chunk in chunks] == sizes


def test_a_comma_that_was_used_is_not_used_again() -> None:
    chunks = a1111("x" * 70 + "," + "y" * 100)
    assert [held(chunk) for chunk in chunks] == ["x" * 70 + ",", "y" * 75, "y" * 25]


def cut_at_commas(text: str) -> list[str]:
    """As A1111 has it: 75 tokens, or up to a comma among their last 20 (if none comes next)."""
    pieces = []
    while len(text) > 75:
        near = text.rfind(",", 55, 75) + 1 if text[75] != "," else 0
        pieces.append(text[: near or 75])
        text = text[len(pieces[-1]) :]
    return [*pieces, text]


def test_random_texts_are_cut_where_commas_are_near() -> None:
    r = random.Random(0)
    for _ in range(300):
        rare = r.choice([2, 10, 40, 200])
        parts = ["".join(r.choices("x,", [rare, 1], k=r.choice([1, 76, 400]))) for _ in range(3)]
        expected = [piece for part in parts for piece in cut_at_commas(part)]
        assert [held(chunk) for chunk in a1111(" BREAK ".join(parts))] == expected


def test_a_break_ends_a_chunk_even_an_empty_one() -> None:
    assert [held(chunk) for chunk in a1111("ab BREAK cd")] == ["ab", "cd"]
    assert [held(chunk) for chunk in a1111("BREAK BREAK cd BREAK")] == ["", "", "cd"]
    assert [held(chunk) for chunk in a1111("x" * 60 + ", BREAK " + "y" * 80)] == [
        "x" * 60 + ",",
        "y" * 75,
        "y" * 5,
    ]


def test_an_embedding_is_not_cut() -> None:
    chunks = a1111("x" * 73 + " <e> y")
    assert [len(held(chunk)) for chunk in chunks] == [73, 4]
    assert chunks[1].ids[1:4] == (500, 501, 502)
    assert [len(held(chunk)) for chunk in a1111("x" * 72 + " <e> y")] == [75, 1]


def test_an_embedding_larger_than_a_chunk_is_cut() -> None:
    several = {7: tuple(range(7, 107))}
    words = Vocabulary(lambda _: list(several[7]), BEGIN, END, PAD, COMMA, several)
    chunks = a1111_chunks(parse_attention("e"), words)
    assert [len(held(chunk)) for chunk in chunks] == [75, 25]


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("x" * 70 + " yyyyyyy", [70, 7]),  # a short word is kept whole
        ("x" * 70 + " yyyyyyyy", [75, 3]),  # a long one is not
        ("x" * 200, [75, 75, 50]),
        ("x" * 75, [75]),
        ("ab, " * 30, [75, 15]),
    ],
)
def test_comfyui_keeps_short_words_whole(text: str, sizes: list[int]) -> None:
    chunks = comfyui_chunks(parse_comfyui(text), WORDS)
    assert [len(held(chunk)) for chunk in chunks] == sizes


def test_a_window_smaller_than_a_word_is_filled_all_the_same() -> None:
    words = Vocabulary(encode, BEGIN, END, PAD, COMMA, {}, room=3)
    chunks = comfyui_chunks(parse_comfyui("ab cdefg"), words)
    assert ["".join(map(chr, c.ids[1 : c.ids.index(END)])) for c in chunks] == ["ab", "cde", "fg"]
