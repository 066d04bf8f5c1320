"""Phrases as tokens, in chunks of the text encoder's size: prompts of any length.

A chunk holds 75 tokens between a beginning and an end. A1111 and ComfyUI differ in what they keep
together at the edge of a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sfumato.text.prompt.attention import BREAK, Phrase

#: A comma among the last so many tokens of a full chunk is where A1111 breaks it.
COMMA_REACH = 20
#: Words of fewer tokens are kept whole by ComfyUI.
LONG_WORD = 8


@dataclass(frozen=True)
class Vocabulary:
    """What has to be known of a tokenizer.

    Attributes:
        encode: text to ids, without beginning and end.
        begin, end: ids put before and after the tokens of a chunk; ``end`` also fills it up.
        pad: fills up what is behind the first ``end``, in encoders trained so (Stable Diffusion
            2.x); the same as ``end`` otherwise.
        comma: id of a comma.
        several: first id of a word that stands for several, and all its ids.
        room: tokens between beginning and end.
    """

    encode: Callable[[str], Sequence[int]]
    begin: int
    end: int
    pad: int
    comma: int
    several: dict[int, tuple[int, ...]]
    room: int = 75


@dataclass(frozen=True)
class Chunk:
    """The tokens of one call of the text encoder, beginning and end included, and their weights."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


Token = tuple[int, float]


class _Filler:
    """Fills chunks token by token; a chunk is a list until it is full."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.done: list[Chunk] = []
        self.tokens: list[Token] = []

    @property
    def left(self) -> int:
        return self.vocabulary.room - len(self.tokens)

    def next_chunk(self, carried: int = 0) -> None:
        """Close the chunk; the last ``carried`` tokens begin the next one."""
        keep = len(self.tokens) - carried
        self.done.append(finished(self.tokens[:keep], self.vocabulary))
        self.tokens = self.tokens[keep:]

    def all(self) -> list[Chunk]:
        """The chunks; at least one."""
        if self.tokens or not self.done:
            self.next_chunk()
        return self.done


def finished(tokens: Sequence[Token], vocabulary: Vocabulary) -> Chunk:
    """Tokens with a beginning, an end and what fills up the chunk, all of weight 1."""
    words = vocabulary
    filling = words.room - len(tokens)
    ids = (words.begin, *(token for token, _ in tokens), words.end, *[words.pad] * filling)
    weights = (1.0, *(weight for _, weight in tokens), 1.0, *[1.0] * filling)
    return Chunk(ids, weights)


def a1111_chunks(phrases: Iterable[Phrase], vocabulary: Vocabulary) -> list[Chunk]:
    """Chunks that end at a comma where one is near, and at every ``BREAK``.

    A word of several tokens of its own (an embedding) is never cut.
    """
    filler = _Filler(vocabulary)
    comma = -1  # its place in the chunk being filled
    for phrase in phrases:
        if phrase is BREAK:
            filler.next_chunk()
            comma = -1
            continue
        for word in _words(vocabulary.encode(phrase.text), vocabulary):
            if word[0] == vocabulary.comma:
                comma = len(filler.tokens)
            elif not filler.left and comma >= 0 and vocabulary.room - comma <= COMMA_REACH:
                filler.next_chunk(carried=vocabulary.room - comma - 1)
                comma = -1
            if len(word) > filler.left:
                filler.next_chunk()
                comma = -1
            filler.tokens += [(token, phrase.weight) for token in word]
    return filler.all()


def comfyui_chunks(phrases: Iterable[Phrase], vocabulary: Vocabulary) -> list[Chunk]:
    """Chunks that end between words; a long word may be cut."""
    filler = _Filler(vocabulary)
    for phrase in phrases:
        for text in filter(None, re.split("[ \n]", phrase.text)):
            tokens = [(token, phrase.weight) for token in vocabulary.encode(text)]
            while len(tokens) > filler.left:
                whole = len(tokens) < LONG_WORD and bool(filler.tokens)
                fitting = 0 if whole else filler.left
                filler.tokens += tokens[:fitting]
                tokens = tokens[fitting:]
                filler.next_chunk()
            filler.tokens += tokens
    return filler.all()


def _words(ids: Sequence[int], vocabulary: Vocabulary) -> Iterator[tuple[int, ...]]:
    """Ids one by one, but those of an embedding together, as far as a chunk can hold them."""
    place = 0
    while place < len(ids):
        word = vocabulary.several.get(ids[place], ())
        if not word or tuple(ids[place : place + len(word)]) != word:
            word = (ids[place],)
        place += len(word)
        for start in range(0, len(word), vocabulary.room):
            yield word[start : start + vocabulary.room]
