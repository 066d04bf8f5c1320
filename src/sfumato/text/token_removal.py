"""Taking added tokens away from a tokenizer, which its library has no way to do.

A tokenizer of the `tokenizers` library (this package's, or transformers' fast one) is rebuilt
from its own description without them; the slow one of transformers keeps plain tables.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from tokenizers import Tokenizer

from sfumato.errors import InputError


def remove_tokens(tokenizer: Any, tokens: Collection[str]) -> None:
    """Remove added tokens; those after them move up, so that ids have no gaps.

    Raises:
        InputError: when it is a kind of tokenizer that is not known here.
    """
    if not tokens:
        return
    if isinstance(getattr(tokenizer, "_tokenizer", None), Tokenizer):
        tokenizer._tokenizer = _without(tokenizer._tokenizer, tokens)
    elif isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        tokenizer.backend_tokenizer = _without(tokenizer.backend_tokenizer, tokens)
    elif hasattr(tokenizer, "_added_tokens_encoder"):
        _remove_from_slow(tokenizer, tokens)
    else:
        raise InputError(f"Tokens cannot be removed from a {type(tokenizer).__name__}.")


def _without(backend: Tokenizer, tokens: Collection[str]) -> Tokenizer:
    description = json.loads(backend.to_str())
    size = backend.get_vocab_size(with_added_tokens=False)
    kept = [t for t in description["added_tokens"] if t["content"] not in tokens]
    beyond = [token for token in kept if token["id"] >= size]
    for index, token in enumerate(beyond):
        token["id"] = size + index
    description["added_tokens"] = kept
    return Tokenizer.from_str(json.dumps(description))


def _remove_from_slow(tokenizer: Any, tokens: Collection[str]) -> None:
    size, index = tokenizer.vocab_size, tokenizer.vocab_size
    decoder = {}
    for old, token in sorted(tokenizer._added_tokens_decoder.items()):
        if token.content in tokens:
            continue
        decoder[old if old < size else index] = token
        index += old >= size
    tokenizer._added_tokens_decoder = decoder
    tokenizer._added_tokens_encoder = {token.content: i for i, token in decoder.items()}
    tokenizer.tokens_trie = type(tokenizer.tokens_trie)()  # else it keeps the words of old tokens
    tokenizer._update_trie()
    tokenizer._update_total_vocab_size()
