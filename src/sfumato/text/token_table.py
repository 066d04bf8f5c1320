"""A vocabulary with its special and added tokens: ids to tokens and back, and ids to text.

`CLIPTokenizer` in ``tokenizer.py`` adds the other direction, text to ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from sfumato.errors import InputError, TokenizerError
from sfumato.text.bpe import build_backend, without_surrogates
from sfumato.text.vocabulary import Vocabulary, read_vocab_and_merges, shipped_vocabulary

#: Traces of tokenizing that `decode` removes on request, in the order of transformers.
_CLEAN_UP = {
    **{f" {mark}": mark for mark in ".?!,"},
    " ' ": "'",
    **{f" {ending}": ending for ending in ("n't", "'m", "'s", "'ve", "'re")},
}


class TokenTable:
    """What a tokenizer knows of its tokens.

    Args:
        vocab_file, merges_file: a vocabulary of your own.
        bos_token, eos_token: put before and after every text.
        unk_token: stands for what a small vocabulary cannot spell.
        pad_token: fills up short texts.
        additional_special_tokens: tokens that `decode` can skip.
        model_max_length: tokens that the text encoder takes, the two special ones included.
        padding_side, truncation_side: ``"right"`` or ``"left"``.
        clean_up_tokenization_spaces: default of `decode`.
        vocabulary: in place of the two files.
        added_tokens: tokens beyond the vocabulary by their id.

    Raises:
        TokenizerError: when the vocabulary cannot be used.
    """

    def __init__(
        self,
        vocab_file: str | PathLike[str] | None = None,
        merges_file: str | PathLike[str] | None = None,
        *,
        bos_token: str | AddedToken = "<|startoftext|>",
        eos_token: str | AddedToken = "<|endoftext|>",
        unk_token: str | AddedToken = "<|endoftext|>",
        pad_token: str | AddedToken = "<|endoftext|>",
        additional_special_tokens: Sequence[str | AddedToken] = (),
        model_max_length: int = 77,
        padding_side: str = "right",
        truncation_side: str = "right",
        clean_up_tokenization_spaces: bool = False,
        vocabulary: Vocabulary | None = None,
        added_tokens: Mapping[int, AddedToken] | None = None,
    ) -> None:
        if (vocab_file is None) != (merges_file is None):
            raise TokenizerError("`vocab_file` and `merges_file` have to be given together.")
        if vocab_file is not None and merges_file is not None:
            vocabulary = read_vocab_and_merges(Path(vocab_file), Path(merges_file))
        self.vocabulary = vocabulary or shipped_vocabulary()
        self.bos_token, self.eos_token = _content(bos_token), _content(eos_token)
        self.unk_token, self.pad_token = _content(unk_token), _content(pad_token)
        self.additional_special_tokens = [_content(t) for t in additional_special_tokens]
        self.model_max_length = model_max_length
        self.padding_side = check_side("padding_side", padding_side)
        self.truncation_side = check_side("truncation_side", truncation_side)
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.backend_tokenizer = build_backend(self.vocabulary, self.unk_token)
        self._add_at(added_tokens or {})
        self._check_roles()
        self._add_special(_special(t, True) for t in (bos_token, eos_token, unk_token))
        self._add_special(_special(t, False) for t in (pad_token, *additional_special_tokens))

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The id of a token, or the ids of several; unknown ones have the id of `unk_token`."""
        if isinstance(tokens, str):
            index = self.backend_tokenizer.token_to_id(tokens)
            return self.unk_token_id if index is None else index
        return [self.convert_tokens_to_ids(token) for token in tokens]

    # Ids to text

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], *, skip_special_tokens: bool = False
    ) -> Any:
        """The token of an id, or the tokens of several; ``None`` for ids that do not exist."""
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        listed = [self.backend_tokenizer.id_to_token(i) for i in _id_list(ids) if i not in skipped]
        return listed[0] if isinstance(ids, int) else listed

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens, with ``</w>`` as a space."""
        joined = self.backend_tokenizer.decoder.decode(tokens)
        return joined.replace("</w>", " ").strip()

    def decode(
        self,
        token_ids: int | Iterable[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of ids (a list, array or tensor with one dimension).

        Args:
            skip_special_tokens: leave out start, end, padding and other special tokens.
            clean_up_tokenization_spaces: remove spaces before punctuation and in contractions.
        """
        text = self.backend_tokenizer.decode(
            _id_list(token_ids), skip_special_tokens=skip_special_tokens
        )
        text = text.replace("</w>", " ").strip()
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        for trace, plain in _CLEAN_UP.items() if clean_up_tokenization_spaces else ():
            text = text.replace(trace, plain)
        return text

    def batch_decode(
        self,
        sequences: Iterable[Iterable[int]],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """`decode` for each row."""
        return [
            self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences
        ]

    # What there is

    def add_tokens(
        self,
        new_tokens: str | AddedToken | Sequence[str | AddedToken],
        special_tokens: bool = False,
    ) -> int:
        """Add tokens beyond the vocabulary; the text encoder then needs `resize_token_embeddings`.

        Returns:
            How many were new.
        """
        listed = [new_tokens] if isinstance(new_tokens, str | AddedToken) else list(new_tokens)
        for token in listed:
            _content(token)
        if special_tokens:
            return self.backend_tokenizer.add_special_tokens(listed)
        return self.backend_tokenizer.add_tokens(listed)

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id, added ones included."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The special and added tokens by id."""
        return self.backend_tokenizer.get_added_tokens_decoder()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """The ids of the special and added tokens."""
        return {t.content: i for i, t in sorted(self.added_tokens_decoder.items())}

    def get_added_vocab(self) -> dict[str, int]:
        """The same as `added_tokens_encoder`."""
        return self.added_tokens_encoder

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary, without added ones; ``len(tokenizer)`` counts those too."""
        return len(self.vocabulary.tokens)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} tokens, model_max_length={self.model_max_length}, "
            f"pad_token={self.pad_token!r})"
        )

    @property
    def bos_token_id(self) -> int:
        return self.convert_tokens_to_ids(self.bos_token)

    @property
    def eos_token_id(self) -> int:
        return self.convert_tokens_to_ids(self.eos_token)

    @property
    def pad_token_id(self) -> int:
        return self.convert_tokens_to_ids(self.pad_token)

    @property
    def unk_token_id(self) -> int:
        return self.backend_tokenizer.token_to_id(self.unk_token)

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """The special tokens by their role."""
        roles: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        }
        if self.additional_special_tokens:
            roles["additional_special_tokens"] = list(self.additional_special_tokens)
        return roles

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once."""
        named = [self.bos_token, self.eos_token, self.unk_token, self.pad_token]
        return list(dict.fromkeys([*named, *self.additional_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def _add_at(self, tokens: Mapping[int, AddedToken]) -> None:
        """Add tokens that have to get just these ids."""
        for index, token in sorted(tokens.items()):
            self.backend_tokenizer.add_tokens([token])
            actual = self.backend_tokenizer.token_to_id(token.content)
            if actual != index:
                raise TokenizerError(
                    f"The added token {token.content[:40]!r} is said to have the id {index}, but "
                    f"after the {self.vocab_size} tokens of the vocabulary it gets {actual}.",
                    hint="Added ids have to go on without gaps where the vocabulary ends.",
                )

    def _add_special(self, tokens: Iterable[AddedToken]) -> None:
        """Make tokens findable in text, unless `_add_at` already has, with the flags of a file."""
        for token in tokens:
            if token.content not in self.added_tokens_encoder:
                self.backend_tokenizer.add_tokens([token])

    def _check_roles(self) -> None:
        for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
            token = getattr(self, role)
            if self.backend_tokenizer.token_to_id(token) is None:
                raise TokenizerError(
                    f"The vocabulary has no token {token[:40]!r}, which is its `{role}`.",
                    hint="Is it CLIP's? Another name can be given as an argument.",
                )


def _content(token: str | AddedToken) -> str:
    content = token.content if isinstance(token, AddedToken) else token
    if not isinstance(content, str):
        raise InputError(f"A token has to be of type `str` but is {type(content)}.")
    if without_surrogates(content) != content:
        raise InputError(f"The token {content!r} is not valid Unicode.")
    return content


def _special(token: str | AddedToken, normalized: bool) -> AddedToken:
    if isinstance(token, AddedToken):
        return token
    return AddedToken(token, normalized=normalized, special=True)


def check_side(name: str, value: str) -> str:
    """Return ``value``, or raise `InputError` unless it is a side."""
    if value not in ("right", "left"):
        raise InputError(f"`{name}` has to be 'right' or 'left' but is {value!r:.80}.")
    return value


def _id_list(ids: Any) -> list[int]:
    """Ids from a number, list, array or tensor, as what the library takes."""
    plain = ids.tolist() if hasattr(ids, "tolist") else ids
    listed = [plain] if isinstance(plain, int) else [int(i) for i in plain]
    for index in listed:
        if not 0 <= index < 2**32:
            raise InputError(f"A token id cannot be negative or over 2**32 but one is {index}.")
    return listed
