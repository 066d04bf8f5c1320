"""Boxes as tokens that the UNet attends to: how the layout models are steered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sfumato.conditioners.condition import Condition
from sfumato.conditioners.layout import LENGTH, VOCABULARY, Layout
from sfumato.errors import InputError
from sfumato.text.ldm_bert import LDMBertModel


class LayoutEncoder(LDMBertModel):
    """The transformer of `LDMBertModel` over the tokens of a `Layout`, as a conditioner.

    Without a configuration it has the shape of the published model for OpenImages: 16 layers of
    width 512, 8192 tokens, 92 of which a layout has.
    """

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        if config is None:
            usual = {"d_model": 512, "encoder_layers": 16, "encoder_ffn_dim": 2048}
            usual |= {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "dropout": 0.0}
            fields = {**usual, **fields}
        super().__init__(config, **fields)

    def count(self, condition: Any) -> int:
        """How many layouts these are: one, or a list."""
        return len(_layouts(condition))

    def encode(self, condition: Any, device: torch.device, dtype: torch.dtype) -> Condition:
        """The encoded tokens of layouts, ``(N, length, width)``."""
        size, length = self.config.vocab_size, self.config.max_position_embeddings
        rows = [one.tokens(vocabulary=size, length=length) for one in _layouts(condition)]
        ids = torch.tensor(rows, device=device)
        return Condition(tokens=self(ids, return_dict=False)[0].to(dtype))

    def encode_negative(
        self, count: int, negative: Any, device: torch.device, dtype: torch.dtype
    ) -> Condition:
        """The encoded tokens of layouts to go away from; by default of one without boxes."""
        layouts = _layouts(Layout() if negative is None else negative)
        layouts = layouts * count if len(layouts) == 1 else layouts
        if len(layouts) != count:
            raise InputError(f"There are {len(layouts)} negative layouts for {count} layouts.")
        return self.encode(layouts, device, dtype)


def _layouts(condition: Any) -> list[Layout]:
    listed = [condition] if isinstance(condition, Layout) else condition
    if not isinstance(listed, list | tuple) or not listed:
        raise InputError(f"A `Layout` is needed, or a list of them, not {listed!r:.80}.")
    for one in listed:
        if not isinstance(one, Layout):
            raise InputError(
                f"What to draw has to be a `Layout` but is {type(one).__name__}.",
                hint="`Layout([Box(...), ...])` makes one of boxes.",
            )
    return list(listed)
