"""The captions of a data set as token ids, and which of them a training step sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from sfumato.errors import ConfigError
from sfumato.text.tokenizer import CLIPTokenizer
from sfumato.training.data import Example
from sfumato.training.loop import TrainConfig

#: Pictures on a sample sheet.
SHEET = 32


@dataclass(frozen=True, kw_only=True)
class CaptionedTraining(TrainConfig):
    """What recipes that read captions have in common.

    Attributes:
        caption_dropout: share of captions replaced by the empty one, so that the network also
            learns what classifier-free guidance leads away from.
    """

    caption_dropout: float = 0.1

    def validate(self) -> None:
        super().validate()
        if not 0 <= self.caption_dropout < 1:
            raise ConfigError(
                f"`caption_dropout` has to lie in [0, 1) but is {self.caption_dropout}."
            )


class Captions:
    """All captions of some examples, tokenized once.

    Args:
        dropout: share of draws that give the empty caption.
    """

    def __init__(
        self, tokenizer: CLIPTokenizer, examples: Sequence[Example], dropout: float
    ) -> None:
        self.dropout = dropout
        self.ids = tokenize(tokenizer, [c for e in examples for c in e.captions])
        self.nothing = tokenize(tokenizer, [""])[0]
        self.first = torch.tensor([0, *accumulate(len(e.captions) for e in examples)])

    def draw(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Token ids ``(batch, length)``: one caption of each chosen example, some of them empty."""
        count = self.first[chosen + 1] - self.first[chosen]
        which = (torch.rand(len(chosen), generator=generator) * count).long()
        ids = self.ids[self.first[chosen] + which]
        dropped = torch.rand(len(chosen), generator=generator) < self.dropout
        return torch.where(dropped[:, None], self.nothing, ids)


def sheet_captions(examples: Sequence[Example]) -> list[str]:
    """The captions that sample sheets show: of at most `SHEET` examples, evenly spread."""
    return [e.captions[0] for e in examples[:: max(1, len(examples) // SHEET)][:SHEET]]


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids ``(n, model_max_length)``, padded and cut."""
    return tokenizer(
        captions,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
