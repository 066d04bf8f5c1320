"""How the network is asked: alone, or once with the prompt and once against it.

A guidance is a function ``(network, x, timestep, context) -> output``, where ``network`` has the
form ``(x, timestep, context) -> output``. So one guidance can wrap another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

from sfumato.array_kinds import blocks_of, deviations, in_type_of, namespace, numbers
from sfumato.errors import InputError

if TYPE_CHECKING:  # arrays of NumPy will do as well
    import torch

Network: TypeAlias = "Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]"
Guidance: TypeAlias = "Callable[[Network, torch.Tensor, torch.Tensor, Any], torch.Tensor]"


class Answer(NamedTuple):
    """What a network says, for the negative half of the context (None without) and the other."""

    negative: torch.Tensor | None
    positive: torch.Tensor


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (arXiv:2207.12598).

    The context holds the negative half first, then the positive half, along its first axis; the
    network sees both in one call. At a scale of 1 or less there is no negative half, and the
    network is asked once.

    Attributes:
        scale: a number, or one per picture.
        rescale: share of the result brought back to the contrast of the positive answer
            (arXiv:2305.08891, section 3.4).
        weights: for prompts of several parts, each picture's weights of its parts; the context
            then has a positive block of all pictures for each part. The guided answer goes from
            the negative one by the weighted sum of what the parts differ from it
            (arXiv:2206.01714). None stands for one part of weight 1.
        tells_negative: ask with a negative half whatever the scale, and hand its answer on behind
            the guided one, as further channels: for samplers that want both, see
            `Plan.wants_negative`.
    """

    scale: float | Sequence[float] = 7.5
    rescale: float = 0.0
    weights: Sequence[Sequence[float]] | None = None
    tells_negative: bool = False

    #: Whether the network may be asked about one half of the context alone.
    separable: ClassVar[bool] = True
    #: Whether prompts may have several parts.
    takes_parts: ClassVar[bool] = True
    #: Which block of the context the negative answer is about, and which the positive one.
    negative_block: ClassVar[int] = 0
    positive_block: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for value in (*_as_list(self.scale), self.rescale):
            if not abs(value) < float("inf"):
                raise InputError(f"A guidance scale has to be a finite number but is {value}.")

    @property
    def doubles(self) -> bool:
        """Whether the network is asked with a negative half as well."""
        return self.tells_negative or max(_as_list(self.scale)) > 1

    def __call__(
        self, network: Network, x: torch.Tensor, timestep: torch.Tensor, context: Any
    ) -> torch.Tensor:
        answer = self.ask(network, x, timestep, context)
        return self.told(self.rescaled(self.guided(answer, self.scale), answer), answer)

    def ask(
        self, network: Network, x: torch.Tensor, timestep: torch.Tensor, context: Any
    ) -> Answer:
        """What the network says about the negative half and the positive half, in one call."""
        if not self.doubles:
            return Answer(None, network(x, timestep, context))
        blocks = self.blocks
        every = namespace(x).concatenate([x] * blocks)
        negative, *answers = blocks_of(network(every, timestep, context), blocks)
        return Answer(negative, self.composed(negative, answers))

    def guided(self, answer: Answer, scale: float | Sequence[float]) -> torch.Tensor:
        """From the negative answer towards the positive one and beyond."""
        negative, positive = answer.negative, answer.positive
        if negative is None:
            return positive
        return negative + self._scale_like(positive, scale) * (positive - negative)

    def rescaled(self, guided: torch.Tensor, answer: Answer) -> torch.Tensor:
        """The guided answer, brought back to the contrast of the positive one in part."""
        if self.rescale <= 0 or answer.negative is None:
            return guided
        return rescale_noise_cfg(guided, answer.positive, self.rescale)

    def told(self, guided: torch.Tensor, answer: Answer) -> torch.Tensor:
        """What the sampler gets: the guided answer, and the negative one if it wants that."""
        if not self.tells_negative:
            return guided
        other = answer.positive if answer.negative is None else answer.negative
        return namespace(guided).concatenate([guided, other], 1)

    @property
    def blocks(self) -> int:
        """How many blocks of all pictures a context with a negative half has."""
        return 2 if self.weights is None else 1 + len(self.weights[0])

    def composed(self, negative: torch.Tensor, answers: Sequence[torch.Tensor]) -> torch.Tensor:
        """The positive answer: that of the only part, or the weighted sum of all."""
        if self.weights is None:
            return answers[0]
        shape = (-1, *[1] * (negative.ndim - 1))
        views = len(negative) // len(self.weights)  # of each picture, in a panorama
        parts = [
            in_type_of(numbers(weights * views, negative), negative).reshape(shape)
            * (answer - negative)
            for answer, weights in zip(answers, zip(*self.weights, strict=True), strict=True)
        ]
        return negative + sum(parts)

    def _scale_like(self, x: torch.Tensor, scale: float | Sequence[float]) -> float | torch.Tensor:
        if isinstance(scale, int | float):
            return scale
        least = float("-inf") if self.tells_negative else 1.0
        views = len(x) // len(scale)
        scales = in_type_of(numbers([max(s, least) for s in scale] * views, x), x)
        return scales.reshape(-1, *[1] * (x.ndim - 1))


def _as_list(scale: float | Sequence[float]) -> list[float]:
    return [scale] if isinstance(scale, int | float) else list(scale)


def rescale_noise_cfg(
    noise_cfg: torch.Tensor, noise_pred_text: torch.Tensor, guidance_rescale: float = 0.0
) -> torch.Tensor:
    """Bring a guided answer back to the standard deviation of the positive answer, in part.

    Args:
        noise_cfg: guided output, ``(n, ...)``.
        noise_pred_text: output for the positive context, same shape.
        guidance_rescale: 0 leaves ``noise_cfg``, 1 replaces it by its rescaled form.
    """
    rescaled = noise_cfg * (deviations(noise_pred_text) / deviations(noise_cfg))
    return guidance_rescale * rescaled + (1 - guidance_rescale) * noise_cfg


def as_guidance(guidance: Guidance | float | None) -> Guidance:
    """A number becomes classifier-free guidance; None asks the network once."""
    if guidance is None:
        return ClassifierFree(1.0)
    return ClassifierFree(guidance) if isinstance(guidance, int | float) else guidance
