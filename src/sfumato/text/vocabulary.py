"""The byte-pair vocabulary of CLIP: the one that ships with the package, and others from files.

``tokenizer.py`` builds on a `Vocabulary` and trusts it, so everything that comes from a file is
checked here: sizes before reading, shapes before use. A vocabulary is a table from token to id
and a list of merges; ``</w>`` at the end of a token marks the end of a word.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

from sfumato.checkpoints.files import open_regular, shown
from sfumato.checkpoints.jsonfile import parse_json, read_json
from sfumato.errors import ConfigError, TokenizerError

#: No vocabulary file may be larger. CLIP's own are 1 MB (vocab.json) and 0.5 MB (merges.txt).
MAX_FILE_BYTES = 64 * 2**20

#: The first merges of a merges.txt that count, as in transformers: OpenAI's original list goes on
#: for five times as long, and its ids leave room for this many (49152 - 256 bytes - 2 specials).
MAX_MERGES_IN_TEXT = 48_894

#: Characters in both files, up to which their vocabulary is remembered.
_REMEMBERED = 4 * 2**20
_recent: list[tuple[tuple[str, str], Vocabulary]] = []

_BAD_FILE_HINT = "Download the tokenizer's folder again, or use the vocabulary that is shipped."


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and merges.

    Attributes:
        tokens: token to id; the ids are 0, 1, 2, ... without gaps.
        merges: pairs of tokens, the most important first; both and their union are tokens.
        models: what the `tokenizers` library has made of them, by the token for the unknown.

    Raises:
        TokenizerError: when that is not so.
    """

    tokens: dict[str, int]
    merges: list[tuple[str, str]]
    models: dict[str | None, Any] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not self.tokens:
            raise TokenizerError("The vocabulary has no tokens.", hint=_BAD_FILE_HINT)
        _check_ids(self.tokens)
        if not _is_unicode("".join(self.tokens)):
            raise TokenizerError("A token is not valid Unicode.", hint=_BAD_FILE_HINT)
        parts = chain(chain.from_iterable(self.merges), map("".join, self.merges))
        if not all(map(self.tokens.__contains__, parts)):
            raise _missing(self.tokens, self.merges)


def _missing(tokens: dict[str, int], merges: list[tuple[str, str]]) -> TokenizerError:
    """The error for the first merge with a part that is no token."""
    parts = ((*pair, part) for pair in merges for part in (*pair, "".join(pair)))
    left, right, token = next(found for found in parts if found[2] not in tokens)
    return TokenizerError(
        f"The merge {left[:40]!r} + {right[:40]!r} needs the token {token[:40]!r}, "
        "which is not in the vocabulary.",
        hint="vocab.json and merges.txt have to come from the same tokenizer.",
    )


def _check_ids(tokens: dict[str, int]) -> None:
    if {*map(type, tokens.values())} == {int} and {*tokens.values()} == {*range(len(tokens))}:
        return
    free = bytearray(len(tokens))
    for token, index in tokens.items():
        if type(index) is not int or not 0 <= index < len(tokens) or free[index]:
            raise TokenizerError(
                f"The id of the token {str(token)[:40]!r} is {str(index)[:40]}, but the ids of a "
                f"vocabulary of {len(tokens)} tokens have to be 0 to {len(tokens) - 1}, each once.",
                hint=_BAD_FILE_HINT,
            )
        free[index] = True


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def byte_characters() -> list[str]:
    """A printable character for each of the 256 bytes, in the order of CLIP's ids.

    The convention comes from GPT-2 (Radford et al. 2019): printable Latin-1 bytes stand for
    themselves and come first, the others are moved up from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    moved = 256 - len(printable)
    return [chr(code) for code in (*printable, *range(0x100, 0x100 + moved))]


@cache
def shipped_vocabulary() -> Vocabulary:
    """OpenAI's vocabulary of 49,408 tokens, which all Stable Diffusion 1.x and 2.x models use.

    Ids 0-255 are the bytes, 256-511 the bytes at the end of a word, then one id per merge, then
    ``<|startoftext|>`` (49406) and ``<|endoftext|>`` (49407).
    """
    packed = (files("sfumato") / "assets" / "clip_vocab.txt.gz").read_bytes()
    merges = _merges_of_text(gzip.decompress(packed).decode("utf-8"), "clip_vocab.txt.gz")
    characters = byte_characters()
    tokens = [*characters, *(c + "</w>" for c in characters)]
    tokens += [left + right for left, right in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return Vocabulary({token: index for index, token in enumerate(tokens)}, merges)


def read_vocab_and_merges(vocab_file: Path, merges_file: Path) -> Vocabulary:
    """Read the pair of files ``vocab.json`` and ``merges.txt``.

    The last two vocabularies are remembered: most models have the same, and taking a file apart is
    most of what loading a tokenizer costs.

    Raises:
        TokenizerError: when a file is too large, not what its name says, or they do not fit.
    """
    texts = read_text(vocab_file), read_text(merges_file)
    for known, vocabulary in _recent:
        if known == texts:
            return vocabulary
    tokens = _object_in(texts[0].removeprefix("\ufeff"), vocab_file)
    vocabulary = Vocabulary(tokens, _merges_of_text(texts[1], merges_file.name))
    if sum(map(len, texts)) <= _REMEMBERED:
        _recent[:] = [(texts, vocabulary), *_recent[:1]]
    return vocabulary


def read_tokenizer_json(file: Path) -> tuple[Vocabulary, list[dict[str, Any]]]:
    """Read the vocabulary and the added tokens of a ``tokenizer.json``.

    The file may also hold rules for splitting text. They are not used: a tokenizer for CLIP has
    CLIP's rules, and foreign regular expressions are not run.

    Raises:
        TokenizerError: when the file is not that of a byte-pair tokenizer.
    """
    content = read_json_object(file)
    model, added = content.get("model"), content.get("added_tokens", [])
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise TokenizerError(f"{file.name} has no `model` with a `vocab`.", hint=_BAD_FILE_HINT)
    merges, pairs = model.get("merges"), []
    for merge in merges if isinstance(merges, list) else [None]:
        pair = merge.split() if isinstance(merge, str) else merge
        if not isinstance(pair, list) or [type(part) for part in pair] != [str, str]:
            raise TokenizerError(
                f"{file.name} has a merge that is not a pair of tokens: {str(merge)[:80]!r}.",
                hint=_BAD_FILE_HINT,
            )
        pairs.append((pair[0], pair[1]))
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise TokenizerError(f"`added_tokens` in {file.name} is not a list of objects.")
    return Vocabulary(model["vocab"], list(dict.fromkeys(pairs))), added


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        TokenizerError: when the file is too large, not JSON, or holds something else.
        CheckpointError: when there is no such file.
    """
    try:
        return read_json(file, max_bytes=MAX_FILE_BYTES)
    except ConfigError as error:
        raise TokenizerError(error.message, hint=_BAD_FILE_HINT) from error


def _object_in(text: str, file: Path) -> dict[str, Any]:
    """The JSON object that was read from a file."""
    try:
        return parse_json(text, shown(file))
    except ConfigError as error:
        raise TokenizerError(error.message, hint=_BAD_FILE_HINT) from error


def merges_as_text(merges: Iterable[tuple[str, str]]) -> str:
    """The content of a ``merges.txt``."""
    return "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)


def _merges_of_text(text: str, name: str) -> list[tuple[str, str]]:
    """The pairs in a ``merges.txt``, each once."""
    lines = text.strip().split("\n")
    header = 1 if "#version" in lines[0] else 0
    lines = lines[header : header + MAX_MERGES_IN_TEXT]
    pairs: list[Any] = [tuple(line.split()) for line in lines]
    if {*map(len, pairs)} - {2}:
        number = next(i for i, pair in enumerate(pairs) if len(pair) != 2)
        raise TokenizerError(
            f"Line {header + number + 1} of {name} has to be two tokens with a space between them "
            f"but is {lines[number][:40]!r}.",
            hint=_BAD_FILE_HINT,
        )
    return pairs if len({*lines}) == len(lines) else list(dict.fromkeys(pairs))


def read_text(file: Path) -> str:
    """The text of a vocabulary's file.

    Raises:
        TokenizerError: it is too large, or no text.
        CheckpointError: there is no such file.
    """
    with open_regular(file) as stream:
        data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise TokenizerError(
            f"{file.name} is larger than {MAX_FILE_BYTES // 2**20} MiB, so it is no vocabulary.",
            hint=_BAD_FILE_HINT,
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{file.name} is not UTF-8 text.", hint=_BAD_FILE_HINT) from error
