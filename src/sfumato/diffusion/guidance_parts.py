"""Parts of a guidance that work on scales and answers; see `steering` for how they go together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from sfumato.diffusion.guidance import rescale_noise_cfg
from sfumato.diffusion.levels import Levels
from sfumato.diffusion.steering import GuidancePart, Question, Scale
from sfumato.errors import InputError


def check_number(owner: str, name: str, value: Any, low: float, high: float) -> None:
    """Raise `InputError` unless ``value`` is a number from ``low`` to ``high``."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # which a NaN is not either
        raise InputError(
            f"`{name}` of {owner} has to be a number from {low:g} to {high:g} but is"
            f" {str(value)[:80]}."
        )


@dataclass(frozen=True, eq=False)
class IntervalGuidance(GuidancePart):
    """Guidance in a part of the run only (arXiv:2404.07724); elsewhere the network is asked once.

    Attributes:
        start, stop: shares of the steps between which to guide, 0..1.
        sigma_low, sigma_high: noise levels (sigma over alpha) between which to guide; those of the
            paper for latent diffusion begin at 0.28 and end at 5.42.
    """

    start: float = 0.0
    stop: float = 1.0
    sigma_low: float = 0.0
    sigma_high: float = math.inf
    levels: Levels | None = None

    def __post_init__(self) -> None:
        for name in ("start", "stop", "sigma_low", "sigma_high"):
            high = math.inf if name.startswith("sigma") else 1
            check_number("IntervalGuidance", name, getattr(self, name), 0, high)

    def bind(self, levels: Levels, unet: Any) -> Self:
        return replace(self, levels=levels)

    def acts(self, timestep: float) -> bool:
        assert self.levels is not None
        inside = self.sigma_low < self.levels.level[timestep] <= self.sigma_high
        return inside and self.start <= self.levels.share[timestep] < self.stop


@dataclass(frozen=True, eq=False)
class CFGPlusPlus(GuidancePart):
    """CFG++ (arXiv:2406.08070): guide the picture, but add back the noise of the negative prompt.

    For samplers of first order without fresh noise (DDIM with eta 0, Euler) that is the same as
    ordinary guidance with the scale ``strength * sigma / (sigma - next sigma)``, which is what this
    uses; with others it is their counterpart. The call's ``guidance_scale`` only has to be above 1.

    Attributes:
        strength: how far to go from the negative to the positive picture, mostly 0..1.
    """

    strength: float = 0.6
    levels: Levels | None = None

    def __post_init__(self) -> None:
        check_number("CFGPlusPlus", "strength", self.strength, 0, 100)

    def bind(self, levels: Levels, unet: Any) -> Self:
        return replace(self, levels=levels)

    def scale(self, scale: Scale, timestep: float) -> Scale:
        assert self.levels is not None
        now, then = self.levels.level[timestep], self.levels.following[timestep]
        if math.isinf(now) or now <= then:
            return self.strength
        return self.strength * now / (now - then)


@dataclass(frozen=True, eq=False)
class RescaleGuidance(GuidancePart):
    """Bring the guided answer back to the contrast of the positive one (arXiv:2305.08891).

    Attributes:
        share: how much of it, 0..1; at this place among the parts, where the call's
            ``guidance_rescale`` comes last.
    """

    share: float = 0.7

    def __post_init__(self) -> None:
        check_number("RescaleGuidance", "share", self.share, 0, 1)

    def change(self, guided: Tensor, question: Question) -> Tensor:
        return rescale_noise_cfg(guided, question.answer.positive, self.share)


@dataclass(frozen=True, eq=False)
class DynamicThresholding(GuidancePart):
    """Large scales without burnt colours: the range of values that a smaller scale would have.

    The guided picture is compared with the picture of ``mimic_scale``, channel by channel: what
    lies beyond the larger of both ranges is cut off, and the rest is brought to the range of the
    latter. This is what the extension sd-dynamic-thresholding does by default.

    Attributes:
        mimic_scale: the scale whose range to keep.
        percentile: the guided picture's range is this quantile of its values, 0..1.
        separate_channels: compare each channel by itself, or all as one.
        share: how much of the result to take, 0..1.
    """

    mimic_scale: float = 7.0
    percentile: float = 1.0
    separate_channels: bool = True
    share: float = 1.0
    levels: Levels | None = None

    def __post_init__(self) -> None:
        check_number("DynamicThresholding", "mimic_scale", self.mimic_scale, 0, 1000)
        check_number("DynamicThresholding", "percentile", self.percentile, 0, 1)
        check_number("DynamicThresholding", "share", self.share, 0, 1)

    def bind(self, levels: Levels, unet: Any) -> Self:
        return replace(self, levels=levels)

    def change(self, guided: Tensor, question: Question) -> Tensor:
        if question.answer.negative is None or self.levels is None:
            return guided
        when, x = float(question.timestep), question.x.float()
        mimicked = question.base.guided(question.answer, self.mimic_scale).float()
        target = self.levels.to_picture(x, guided.float(), when)
        mimic = self.levels.to_picture(x, mimicked, when)
        result = torch.lerp(target, self.limited(target, mimic), self.share)
        return self.levels.to_output(x, result, when).to(guided.dtype)

    def limited(self, target: Tensor, mimic: Tensor) -> Tensor:
        """``target`` in the range of ``mimic``, both ``(n, channels, height, width)``."""
        axis = 2 if self.separate_channels else 1
        flat, mimic_flat = target.flatten(axis), mimic.flatten(axis)
        mean = flat.mean(-1, keepdim=True)
        centred = flat - mean
        wanted = (mimic_flat - mimic_flat.mean(-1, keepdim=True)).abs().amax(-1, keepdim=True)
        reach = torch.quantile(centred.abs(), self.percentile, dim=-1, keepdim=True)
        bound = torch.maximum(wanted, reach).clamp(min=1e-12)
        limited = centred.clamp(-bound, bound) / bound * wanted + mean
        return limited.view_as(target)


def as_parts(guidance: Any) -> tuple[GuidancePart, ...]:
    """What a call's ``guidance`` holds: parts, one or several.

    Raises:
        InputError: for anything else.
    """
    if guidance is None:
        return ()
    parts = [guidance] if isinstance(guidance, GuidancePart) else guidance
    if not isinstance(parts, Sequence) or not all(isinstance(p, GuidancePart) for p in parts):
        raise InputError(
            "`guidance` has to be a part of a guidance or a list of them but is"
            f" {str(guidance)[:80]}.",
            hint="For example [PerturbedAttentionGuidance(), IntervalGuidance(0.1, 0.9)].",
        )
    return tuple(parts)
