"""What a network is told besides noise and time, and what makes it of a user's wishes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sfumato.errors import InputError


@dataclass(frozen=True, eq=False)
class Condition:
    """What a network is told besides noise and time. Each has a row for each condition.

    Attributes:
        tokens: what cross-attention looks at, ``(N, S, C)``.
        channels: maps to lay beside the latents, ``(N, C, h, w)`` of the latents' size.
        class_labels: for the embedding of classes beside that of time, ``(N,)``.
    """

    tokens: Tensor | None = None
    channels: Tensor | None = None
    class_labels: Tensor | None = None

    def parts(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def spread(self, images: int) -> Condition:
        """Each row so many times: several pictures of one condition follow each other."""
        rows = {name: value.repeat_interleave(images, 0) for name, value in self.parts().items()}
        return Condition(**rows)

    def after(self, negative: Condition) -> Condition:
        """Both in one, the negative one first, as guidance wants it."""
        own, other = self.parts(), negative.parts()
        if own.keys() != other.keys():
            raise InputError("The condition and the negative one are not of one kind.")
        return Condition(**{name: torch.cat([other[name], own[name]]) for name in own})


class Conditioner(Protocol):
    """Turns what pictures shall show into what the network is told: a component of a pipeline."""

    def count(self, condition: Any) -> int:
        """How many conditions these are; `InputError` for what is none."""
        ...

    def encode(self, condition: Any, device: torch.device, dtype: torch.dtype) -> Condition:
        """With a row for each condition."""
        ...

    def encode_negative(
        self, count: int, negative: Any, device: torch.device, dtype: torch.dtype
    ) -> Condition:
        """What guidance leads away from, ``count`` rows; None stands for no condition at all.

        Raises:
            InputError: the model was not trained to draw without a condition.
        """
        ...
