"""Prompts with weights and of any length, to embeddings: chunk by chunk through the text encoder.

`contexts` calls `LongPromptEncoder` for every text that a prompt becomes over the steps. The
pieces come from `sfumato.text.prompt`, which knows no torch, and from `weighting`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sfumato.array_kinds import numbers
from sfumato.errors import InputError, did_you_mean
from sfumato.text.prompt import A1111, A1111_NO_NORM, COMFYUI, LITERAL, SYNTAX_NAMES, TAGGED
from sfumato.text.prompt.attention import Phrase, parse_attention
from sfumato.text.prompt.chunks import Chunk, Vocabulary, a1111_chunks, comfyui_chunks, finished
from sfumato.text.prompt.comfyui import parse_comfyui
from sfumato.text.weighting import Weighting, from_empty, multiplying, restoring_mean
from sfumato.text.written_out import maybe_convert_prompt

logger = logging.getLogger(__name__)

#: A prompt has at most so many chunks; what comes after is left out, with a warning.
MAX_CHUNKS = 64


@dataclass(frozen=True)
class PromptSyntax:
    """How a program reads prompts.

    Attributes:
        name: for users.
        phrases: text to phrases with weights.
        chunks: phrases to chunks of tokens.
        weighting: what weights do.
    """

    name: str
    phrases: Callable[[str], list[Phrase]]
    chunks: Callable[[Iterable[Phrase], Vocabulary], list[Chunk]]
    weighting: Weighting

    @property
    def scripted(self) -> bool:
        """Whether prompts may change over the steps, have several parts and tags."""
        return self.name in TAGGED


#: Those there are, besides ``literal``, which is diffusers' way: every letter is text.
SYNTAXES = {
    syntax.name: syntax
    for syntax in (
        PromptSyntax(A1111, parse_attention, a1111_chunks, restoring_mean),
        PromptSyntax(A1111_NO_NORM, parse_attention, a1111_chunks, multiplying),
        PromptSyntax(COMFYUI, parse_comfyui, comfyui_chunks, from_empty),
    )
}


def find_syntax(name: str | None) -> PromptSyntax | None:
    """The syntax of that name; None for literal prompts.

    Raises:
        InputError: when there is none.
    """
    if name is None or name == LITERAL:
        return None
    if not isinstance(name, str) or name not in SYNTAXES:
        raise InputError(
            f"`prompt_syntax` has to be one of {', '.join(SYNTAX_NAMES)} but is"
            f" {str(name)[:80]!r}.{did_you_mean(str(name), SYNTAX_NAMES)}"
        )
    return SYNTAXES[name]


class Encoding(Protocol):
    """Tokenizer and text encoder of any backend, as one call uses them.

    `sfumato.text.conditioning.TextEncoding` is that of torch.
    """

    tokenizer: Any

    def check_parts(self) -> None:
        """Raise `InputError` when there is no tokenizer or no text encoder."""
        ...

    def most_tokens(self) -> int:
        """What the tokenizer and the positions of the text encoder allow."""
        ...

    def row(self, ids: Sequence[int], used: int, clip_skip: int | None) -> Any:
        """Hidden states ``(length, width)`` of one chunk, of which ``used`` tokens are words."""
        ...


class LongPromptEncoder:
    """Embeds texts of one syntax; each chunk by itself and once only.

    So an embedding depends on its text alone, not on others in the batch.

    Args:
        encoding: tokenizer and text encoder.
        syntax: how to read the texts.
        clip_skip: how many of the text encoder's last layers to leave out.
    """

    def __init__(
        self, encoding: Encoding, syntax: PromptSyntax, clip_skip: int | None = None
    ) -> None:
        self.encoding = encoding
        self.syntax = syntax
        self.clip_skip = clip_skip
        self.vocabulary = vocabulary_of(encoding)
        self._hidden: dict[tuple[int, ...], Any] = {}

    def anew(self) -> LongPromptEncoder:
        """The same, for a text encoder whose adapters have changed."""
        return LongPromptEncoder(self.encoding, self.syntax, self.clip_skip)

    def __call__(self, text: str) -> list[Any]:
        """The embeddings of a text's chunks, each ``(length, width)``; at least one."""
        chunks = self.syntax.chunks(self.syntax.phrases(text), self.vocabulary)
        if len(chunks) > MAX_CHUNKS:
            logger.warning(
                "The prompt has %d tokens; what comes after the first %d is left out.",
                len(chunks) * self.vocabulary.room,
                MAX_CHUNKS * self.vocabulary.room,
            )
        return [self._weighted(chunk) for chunk in chunks[:MAX_CHUNKS]]

    def empty(self) -> Any:
        """The embedding of a chunk without words."""
        return self._of(finished([], self.vocabulary).ids)

    def _weighted(self, chunk: Chunk) -> Any:
        hidden = self._of(chunk.ids)
        return self.syntax.weighting(hidden, numbers(chunk.weights, hidden), self.empty)

    def _of(self, ids: tuple[int, ...]) -> Any:
        if ids not in self._hidden:
            used = ids.index(self.vocabulary.end, 1) + 1
            self._hidden[ids] = self.encoding.row(ids, used, self.clip_skip)
        return self._hidden[ids]


def vocabulary_of(encoding: Encoding) -> Vocabulary:
    """What the chunks have to know of a tokenizer, ours or transformers'."""
    tokenizer = encoding.tokenizer
    added: dict[str, int] = dict(getattr(tokenizer, "added_tokens_encoder", {}))

    def encode(text: str) -> list[int]:
        text = _embedding_names(text, added)
        written_out = maybe_convert_prompt(text, tokenizer) if added else text
        return tokenizer(written_out, add_special_tokens=False).input_ids

    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    commas = encode(",")
    return Vocabulary(
        encode=encode,
        begin=begin,
        end=end,
        pad=pad,
        comma=commas[0] if len(commas) == 1 else -1,
        several=_several(added),
        room=encoding.most_tokens() - 2,
    )


def _several(added: dict[str, int]) -> dict[int, tuple[int, ...]]:
    """First id to all ids, of words that stand for several vectors."""
    found: dict[int, tuple[int, ...]] = {}
    for token, first in added.items():
        ids = [first]
        while (following := f"{token}_{len(ids)}") in added:
            ids.append(added[following])
        if len(ids) > 1:
            found[first] = tuple(ids)
    return found


_EMBEDDING = re.compile(r"\bembedding:(\S+)")


def _embedding_names(text: str, added: dict[str, int]) -> str:
    """``embedding:name``, as ComfyUI has it, becomes the name where that is a word we know."""
    if "embedding:" not in text:
        return text
    return _EMBEDDING.sub(lambda match: match[1] if match[1] in added else match[0], text)
