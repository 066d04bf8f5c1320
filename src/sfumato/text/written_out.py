"""Words of textual inversion that stand for several vectors, written out in prompts."""

from __future__ import annotations

import re
from typing import Any


def maybe_convert_prompt(prompt: str | list[str], tokenizer: Any) -> Any:
    """Write out textual-inversion tokens that stand for several vectors.

    Of a token ``<cat>`` with three vectors the tokenizer knows ``<cat>``, ``<cat>_1`` and
    ``<cat>_2``; the word ``<cat>`` in a prompt becomes all three. Other text stays as it is.

    Returns:
        A text for a text, a list for a list.
    """
    added = getattr(tokenizer, "added_tokens_encoder", {})
    several = {token for token in added if f"{token}_1" in added}
    if not several:
        return prompt
    if isinstance(prompt, list):
        return [_write_out(text, tokenizer, several) for text in prompt]
    return _write_out(prompt, tokenizer, several)


def _write_out(prompt: str, tokenizer: Any, several: set[str]) -> str:
    for token in dict.fromkeys(tokenizer.tokenize(prompt)):
        if token not in several:
            continue
        words, index = [token], 1
        while f"{token}_{index}" in tokenizer.added_tokens_encoder:
            words.append(f"{token}_{index}")
            index += 1
        phrase = " ".join(words)
        if token in prompt:
            prompt = prompt.replace(token, phrase)
        else:  # our tokenizer finds added tokens in any case
            prompt = re.sub(re.escape(token), lambda _, p=phrase: p, prompt, flags=re.IGNORECASE)
    return prompt
