"""Textual inversions for text encoders whose table of tokens is an array."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from sfumato.text.textual_inversion import load_textual_inversion

Array = np.ndarray[Any, Any]


class _Table:
    """What `load_textual_inversion` needs of a text encoder."""

    def __init__(self, rows: Array, config: Any) -> None:
        self.embedding = nn.Embedding.from_pretrained(torch.from_numpy(rows), freeze=True)
        self.config = config

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding


def with_inversions(
    tokenizer: Any, rows: Array, config: Any, sources: Any, token: Any = None, **options: Any
) -> tuple[Array, Any]:
    """Add tokens to a tokenizer, and their vectors to a table.

    Args:
        tokenizer: gets the tokens; on an error it is as before.
        rows: the table, ``(tokens, width)`` float32.
        config: of the text encoder.
        sources, token, options: as of `sfumato.text.textual_inversion.load_textual_inversion`,
            whose errors this raises.

    Returns:
        The longer table, and the configuration that fits it.
    """
    table = _Table(np.array(rows, np.float32), config)
    load_textual_inversion(tokenizer, table, sources, token, **options)
    return table.embedding.weight.detach().numpy(), table.config
