"""Parts of a guidance that look into the network's self-attention: PAG and SAG.

They replace attention processors for single calls, in their own thread alone, so that other calls
of the same network are not affected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.diffusion.guidance_parts import check_number
from sfumato.diffusion.levels import Levels
from sfumato.diffusion.steering import GuidancePart, Question
from sfumato.errors import InputError
from sfumato.models.attention import Attention
from sfumato.models.processors import (
    IdentityAttention,
    StoringAttention,
    replaced_processors,
)


def self_attention_layers(unet: Any) -> dict[str, Attention]:
    """The self-attention layers of a UNet by name.

    Raises:
        InputError: for a network of another library, whose layers cannot be reached.
    """
    modules = dict(unet.named_modules()) if hasattr(unet, "named_modules") else {}
    found = {
        name: module
        for name, module in modules.items()
        if isinstance(module, Attention) and not module.is_cross_attention
    }
    if not found:
        raise InputError(
            "This guidance looks into self-attention layers, of which the UNet has none of ours.",
            hint="Load the UNet with sfumato.",
        )
    return found


@dataclass(frozen=True, eq=False)
class PerturbedAttentionGuidance(GuidancePart):
    """Perturbed-attention guidance (PAG, arXiv:2403.17377).

    The network is asked about the prompt a second time, with each place in some layers attending to
    itself alone; the answer is moved away from that. It works with and without a guidance scale.

    Attributes:
        strength: how far to move away.
        adaptive: lowers ``strength`` by this for every timestep below 1000.
        layers: patterns of the layers' names; a layer whose name holds a match is perturbed.
    """

    strength: float = 3.0
    adaptive: float = 0.0
    layers: str | Sequence[str] = "mid"
    perturbed: Mapping[Attention, IdentityAttention] | None = None

    def __post_init__(self) -> None:
        check_number("PerturbedAttentionGuidance", "strength", self.strength, 0, 1000)
        check_number("PerturbedAttentionGuidance", "adaptive", self.adaptive, 0, 1000)

    def bind(self, levels: Levels, unet: Any) -> Self:
        known = self_attention_layers(unet)
        patterns = [self.layers] if isinstance(self.layers, str) else self.layers
        chosen: list[str] = []
        for pattern in patterns:
            names = [name for name in known if _matches(pattern, name)]
            if not names:
                raise InputError(
                    f"No self-attention layer's name matches {pattern[:80]!r}.",
                    hint=f"There are: {', '.join(known)[:2000]}.",
                )
            chosen += names
        return replace(self, perturbed={known[name]: IdentityAttention() for name in chosen})

    def change(self, guided: Tensor, question: Question) -> Tensor:
        assert self.perturbed is not None
        scale = self.strength
        if self.adaptive > 0:
            scale = max(0.0, scale - self.adaptive * (1000 - float(question.timestep)))
        if scale == 0:
            return guided
        with replaced_processors(self.perturbed):
            perturbed = question.ask_positive()
        return guided + scale * (question.answer.positive - perturbed)


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern is found in a name; one of the last block's number alone is chance."""
    try:
        found = re.search(pattern, name) is not None
    except re.error as error:
        raise InputError(f"{pattern[:80]!r} is no pattern of names: {error}.") from None
    last = pattern.rpartition(".")[2]
    return found and not (last.isnumeric() and last == name.rpartition(".")[2])


@dataclass(frozen=True, eq=False)
class SelfAttentionGuidance(GuidancePart):
    """Self-attention guidance (SAG, arXiv:2210.00939).

    Where the middle of the network attends most, the picture that it has in mind is blurred and
    noised again; the answer is moved away from what the network says about that.

    Attributes:
        strength: how far to move away.
        sigma: of the blur, in latents, over a window of 9.
        threshold: how much attention a place has to get to be blurred; the average place gets 1.
    """

    strength: float = 0.75
    sigma: float = 1.0
    threshold: float = 1.0
    levels: Levels | None = None
    layer: Attention | None = None

    def __post_init__(self) -> None:
        check_number("SelfAttentionGuidance", "strength", self.strength, 0, 1000)
        check_number("SelfAttentionGuidance", "sigma", self.sigma, 0.01, 100)
        check_number("SelfAttentionGuidance", "threshold", self.threshold, 0, 1000)

    def bind(self, levels: Levels, unet: Any) -> Self:
        middle = [m for name, m in self_attention_layers(unet).items() if "mid_block" in name]
        if not middle:
            raise InputError("The UNet has no self-attention in its middle, which SAG looks at.")
        return replace(self, levels=levels, layer=middle[0])

    @contextmanager
    def watch(self, notes: dict[Any, Any]) -> Iterator[None]:
        assert self.layer is not None
        storing = StoringAttention()
        notes[self] = storing
        with replaced_processors({self.layer: storing}):
            yield

    def change(self, guided: Tensor, question: Question) -> Tensor:
        x, when = question.x, float(question.timestep)
        weights = question.notes[self].weights
        assert self.levels is not None and weights is not None
        negative, positive = question.answer.negative, question.answer.positive
        weaker = positive if negative is None else negative
        picture = self.levels.to_picture(x, weaker, when)
        alpha, sigma = self.levels.weights(when)
        noise = (x - alpha * picture) / sigma
        block = 0 if negative is None else question.base.negative_block
        weights = weights[block * len(x) : (block + 1) * len(x)]
        mask = attended(weights, x.shape[-2:], self.threshold).to(x.dtype)
        blurred = torch.lerp(picture, blur(picture, self.sigma), mask)
        degraded = question.ask_weaker(alpha * blurred + sigma * noise)
        return guided + self.strength * (weaker - degraded)


def attended(weights: Tensor, size: Sequence[int], threshold: float) -> Tensor:
    """Where attention goes: 1 for places that get more than ``threshold``, else 0.

    Args:
        weights: of a self-attention layer, ``(n, heads, places, places)``.
        size: height and width of the result; the layer's are these, halved some times.
        threshold: see `SelfAttentionGuidance`.

    Returns:
        ``(n, 1, height, width)``.
    """
    height, width = size
    while height * width > weights.shape[-1]:
        height, width = -(-height // 2), -(-width // 2)
    got = weights.mean(1).sum(1) > threshold
    mask = got.view(-1, 1, height, width).float()
    return F.interpolate(mask, (size[0], size[1]))


def blur(image: Tensor, sigma: float, window: int = 9) -> Tensor:
    """Gaussian blur of ``(n, channels, height, width)``, mirrored at the edges."""
    reach = window // 2
    places = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = image.shape[1]
    pad = [min(reach, side - 1) for side in image.shape[-2:]]
    padded = F.pad(image, (pad[1], pad[1], pad[0], pad[0]), mode="reflect")
    rest = [reach - p for p in pad]
    padded = F.pad(padded, (rest[1], rest[1], rest[0], rest[0]), mode="replicate")
    rows = kernel.view(1, 1, window, 1).expand(channels, 1, window, 1)
    columns = kernel.view(1, 1, 1, window).expand(channels, 1, 1, window)
    return F.conv2d(F.conv2d(padded, rows, groups=channels), columns, groups=channels)
