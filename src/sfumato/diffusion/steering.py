"""Guidance put together of parts: each changes how a step is guided, and several go together.

A part is told the facts of a run once (`bind`) and then meets every step: it may leave the step
unguided, choose another scale, and change the guided answer. `Steered` asks the network as
`ClassifierFree` does and lets the parts do so, in their order. `guidance_parts` and
`guidance_attention` have the parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from sfumato.diffusion.guidance import Answer, ClassifierFree, Network
from sfumato.diffusion.levels import Levels

Scale = float | Sequence[float]


@dataclass(eq=False)
class Question:
    """A step's call of the network, for parts that want to ask it more.

    Attributes:
        network, x, timestep, context: as a guidance gets them.
        base: how the network is asked.
        answer: what it said.
        scale: how far to go from the negative to the positive answer.
        separable: whether the network may be asked about one half of the context alone.
        notes: what parts remember between watching and changing a step.
    """

    network: Network
    x: Tensor
    timestep: Tensor
    context: Any
    base: ClassifierFree
    answer: Answer
    scale: Scale
    separable: bool
    notes: dict[Any, Any] = field(default_factory=dict)

    def ask_positive(self) -> Tensor:
        """Ask about the prompt again, under what is changed in the network meanwhile."""
        if self.answer.negative is None:
            return self.network(self.x, self.timestep, self.context)
        if self.separable and self.base.weights is None:
            return self.network(self.x, self.timestep, self.context[len(self.x) :])
        if self.base.weights is None:
            return self.base.ask(self.network, self.x, self.timestep, self.context).positive
        blocks = self.base.blocks
        _, *answers = self.network(torch.cat([self.x] * blocks), self.timestep, self.context).chunk(
            blocks
        )
        return self.base.composed(self.answer.negative, answers)

    def ask_weaker(self, x: Tensor) -> Tensor:
        """Ask about another ``x`` and the negative prompt; without guidance, about the prompt."""
        if self.answer.negative is None:
            return self.network(x, self.timestep, self.context)
        if self.separable:
            return self.network(x, self.timestep, self.context[: len(x)])
        negative = self.base.ask(self.network, x, self.timestep, self.context).negative
        assert negative is not None
        return negative


class GuidancePart:
    """What one part of a guidance does; each method changes nothing until overridden."""

    def bind(self, levels: Levels, unet: Any) -> Self:
        """The part for one run, given its noise levels and the network."""
        return self

    def acts(self, timestep: float) -> bool:
        """False leaves the step without any guidance."""
        return True

    def scale(self, scale: Scale, timestep: float) -> Scale:
        """The scale to use in place of ``scale``."""
        return scale

    def watch(self, notes: dict[Any, Any]) -> AbstractContextManager[Any]:
        """Entered while the network is asked first."""
        return nullcontext()

    def change(self, guided: Tensor, question: Question) -> Tensor:
        """The guided answer in place of ``guided``."""
        return guided


@dataclass(frozen=True, eq=False)
class Steered:
    """A guidance of parts.

    Attributes:
        base: how the network is asked.
        parts: bound to the run.
        separable: see `Question`.
    """

    base: ClassifierFree
    parts: Sequence[GuidancePart]
    separable: bool = True

    def __call__(self, network: Network, x: Tensor, timestep: Tensor, context: Any) -> Tensor:
        base, when = self.base, float(timestep)
        if not all(part.acts(when) for part in self.parts):
            return self._unguided(network, x, timestep, context)
        notes: dict[Any, Any] = {}
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.watch(notes))
            answer = base.ask(network, x, timestep, context)
        scale: Scale = base.scale
        for part in self.parts:
            scale = part.scale(scale, when)
        question = Question(
            network, x, timestep, context, base, answer, scale, self.separable, notes
        )
        guided = base.guided(answer, scale)
        for part in self.parts:
            guided = part.change(guided, question)
        return base.told(base.rescaled(guided, answer), answer)

    def _unguided(self, network: Network, x: Tensor, timestep: Tensor, context: Any) -> Tensor:
        """The answer to the prompt alone."""
        base = self.base
        if base.doubles and self.separable and base.weights is None:
            positive = network(x, timestep, context[len(x) :])
        else:
            positive = base.ask(network, x, timestep, context).positive
        return base.told(positive, Answer(None, positive))
