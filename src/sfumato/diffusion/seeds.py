"""Noise by seed: one seed per picture, as the CPU, an NVIDIA card or another program draws it.

`seeded_noise` is what the pipelines call for ``seeds=``; the classes are noise sources
(see `noise`) and can be put together by hand as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.diffusion.noise import (
    NoiseSource,
    SeededNoise,
    before_start,
    check_count,
    checked_seeds,
)
from sfumato.diffusion.philox import cuda_randn
from sfumato.diffusion.rng import find_rng
from sfumato.errors import InputError


class NvidiaNoise:
    """Noise as torch draws it on an NVIDIA card, made on the CPU; see `philox`.

    Args:
        seeds: one per picture, 0 to 2**64 - 1.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = checked_seeds(seeds)
        self._draws = 0

    def draw(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        check_count(shape, self.seeds)
        rows = [self.randn(seed, shape[1:], self._draws) for seed in self.seeds]
        self._draws += 1
        return torch.stack(rows).to(device, dtype)

    @staticmethod
    def randn(seed: int, shape: Sequence[int], draw: int = 0) -> Tensor:
        """The numbers of a seed's first draw, or of a later one, in float32."""
        count = int(torch.Size(shape).numel())
        return torch.from_numpy(cuda_randn(count, seed, draw)).view(*shape)


class FirstThen:
    """The first draw from one source, later ones from another.

    ComfyUI draws the noise to start from on the CPU, and what samplers add on the card.

    Attributes:
        before_start: see `noise.before_start`.
    """

    def __init__(self, first: NoiseSource, then: NoiseSource) -> None:
        self._first, self._then = first, then
        self.before_start = before_start(first)
        self._begun = False

    def draw(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        source = self._then if self._begun else self._first
        self._begun = True
        return source.draw(shape, dtype, device)


Maker = Callable[[Sequence[int]], NoiseSource]

#: What the names in `rng` stand for.
RNGS: dict[str, Maker] = {
    "cpu": SeededNoise,
    "nvidia": NvidiaNoise,
    "comfyui": lambda seeds: FirstThen(SeededNoise(seeds), NvidiaNoise(seeds)),
}


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How the first noise differs from that of the seeds alone; as in A1111.

    Attributes:
        seeds: one per picture, of the noise to go towards.
        strength: how far, 0..1.
        resize_from: height and width of latents whose noise to put in the middle, so that a
            picture of another size keeps its composition; None for the picture's own size.
    """

    seeds: Sequence[int] = ()
    strength: float = 0.0
    resize_from: tuple[int, int] | None = None


class VariedNoise:
    """A source whose first draw is varied; later draws are those of the seeds.

    Args:
        make: seeds to a source.
        seeds: one per picture.
        variation: see `Variation`.

    Attributes:
        before_start: see `noise.before_start`.
    """

    def __init__(self, make: Maker, seeds: Sequence[int], variation: Variation) -> None:
        self._make, self._seeds, self._variation = make, seeds, variation
        self._source = make(seeds)
        self.before_start = before_start(self._source)
        self._begun = False

    def draw(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        if self._begun:
            return self._source.draw(shape, dtype, device)
        self._begun = True
        return self._first(shape).to(device, dtype)

    def _first(self, shape: Sequence[int]) -> Tensor:
        own = self._source.draw(shape, torch.float32, "cpu")
        size = self._variation.resize_from or tuple(shape[-2:])
        inner = (*shape[:-2], *size)
        resized = size != tuple(shape[-2:])
        noise = self._make(self._seeds).draw(inner, torch.float32, "cpu") if resized else own
        if self._variation.strength != 0:
            other = self._make(self._variation.seeds).draw(inner, torch.float32, "cpu")
            pairs = zip(noise, other, strict=True)
            noise = torch.stack([slerp(a, b, self._variation.strength) for a, b in pairs])
        return paste_in_middle(own, noise) if resized else noise


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Spherical interpolation of noise ``(channels, height, width)``, column by column.

    Each column of numbers along the height is turned by itself, as A1111 does; nearly parallel
    columns are mixed in a straight line.
    """
    unit_start, unit_end = (t / t.norm(dim=1, keepdim=True) for t in (start, end))
    cosine = (unit_start * unit_end).sum(1, keepdim=True)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    straight = torch.lerp(start, end, share)
    if cosine.mean() > 0.9995:
        return straight
    turned = ((1 - share) * angle).sin() / sine * start + (share * angle).sin() / sine * end
    return torch.where(sine > 1e-6, turned, straight)


def paste_in_middle(ground: Tensor, patch: Tensor) -> Tensor:
    """``ground`` with ``patch`` in its middle; what of it is too large is cut off at both sides."""
    result = ground.clone()
    places: list[slice[int, int, None]] = []
    parts: list[slice[int, int, None]] = []
    for axis in (-2, -1):
        whole, part = ground.shape[axis], patch.shape[axis]
        # A1111 halves the difference towards minus infinity and keeps both ends alike.
        shift = (whole - part) // 2
        length = part if shift >= 0 else part + 2 * shift
        places.append(slice(max(shift, 0), max(shift, 0) + length))
        parts.append(slice(max(-shift, 0), max(-shift, 0) + length))
    result[..., places[0], places[1]] = patch[..., parts[0], parts[1]]
    return result


def seeded_noise(
    seeds: Sequence[int],
    rng: str = "cpu",
    variation: Variation | None = None,
    eta_seed_delta: int = 0,
) -> NoiseSource:
    """A source with one seed per picture.

    Args:
        seeds: 0 to 2**64 - 1 each.
        rng: see `sfumato.diffusion.rng`.
        variation: of the first draw.
        eta_seed_delta: added to the seeds for the noise that samplers add, which then begins anew
            after the first draw; A1111's "eta noise seed delta" (ENSD).

    Raises:
        InputError: a seed or a name is wrong, or there is not a variation seed for each picture.
    """
    if eta_seed_delta:
        if find_rng(rng) == "comfyui":
            raise InputError("The noise of ComfyUI has no `eta_noise_seed_delta`.")
        later = [(seed + eta_seed_delta) % 2**64 for seed in checked_seeds(seeds)]
        return FirstThen(seeded_noise(seeds, rng, variation), RNGS[find_rng(rng)](later))
    make = RNGS[find_rng(rng)]
    if variation is None or (variation.strength == 0 and variation.resize_from is None):
        return make(seeds)
    if variation.strength != 0 and len(variation.seeds) != len(seeds):
        raise InputError(
            f"There are {len(seeds)} seeds but {len(variation.seeds)} variation seeds."
        )
    return VariedNoise(make, checked_seeds(seeds), variation)


def read_seeds(name: str, value: Any) -> list[int] | None:
    """One seed or several, as a list.

    Raises:
        InputError: for anything else.
    """
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or not value:
        raise InputError(f"`{name}` has to be a seed or a list of them but is {str(value)[:80]!r}.")
    return list(checked_seeds(value))
