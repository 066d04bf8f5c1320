"""Text as tokens that the UNet attends to, by a tokenizer and an encoder of any kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sfumato.conditioners.condition import Condition
from sfumato.errors import InputError

#: Tokens of a text in every published model.
_LENGTH = 77


@dataclass(frozen=True, eq=False)
class TextReader:
    """Reads texts as the paper's text-to-image model does: padding is read like words.

    Attributes:
        encoder: ids to vectors, the first entry of what it returns; `LDMBertModel` or another.
        tokenizer: text to ids.
    """

    encoder: Any
    tokenizer: Any

    def count(self, condition: Any) -> int:
        """How many texts these are: one, or a list."""
        return len(_texts("prompt", condition))

    def encode(self, condition: Any, device: torch.device, dtype: torch.dtype) -> Condition:
        """The encoded tokens of texts, ``(N, length, width)``."""
        config = getattr(self.encoder, "config", None)
        longest = getattr(config, "max_position_embeddings", _LENGTH)
        batch = self.tokenizer(
            _texts("prompt", condition),
            padding="max_length",
            max_length=min(_LENGTH, longest),
            truncation=True,
            return_tensors="pt",
        )
        return Condition(tokens=self.encoder(batch.input_ids.to(device))[0].to(dtype))

    def encode_negative(
        self, count: int, negative: Any, device: torch.device, dtype: torch.dtype
    ) -> Condition:
        """The encoded tokens of texts to go away from; by default of the empty text.

        Raises:
            InputError: there are more or less than of the others.
        """
        texts = _texts("negative_prompt", "" if negative is None else negative)
        texts = texts * count if len(texts) == 1 else texts
        if len(texts) != count:
            raise InputError(
                f"`negative_prompt` has {len(texts)} texts but `prompt` has {count}; there has to "
                "be one, or as many."
            )
        return self.encode(texts, device, dtype)


def _texts(name: str, given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"`{name}` has to be of type `str` or `list` but is {type(given)}")
    if not texts:
        raise InputError(f"`{name}` is an empty list.")
    return list(texts)
