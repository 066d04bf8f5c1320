"""Where randomness comes from: always an argument, never hidden.

A source answers ``draw(shape, dtype, device)``. `GeneratorNoise` draws exactly as diffusers does
from the same generators; `SeededNoise` gives every picture its own seed, so that a picture does
not depend on its neighbours in a batch. A source can be given wherever a generator can; `seeds`
makes more of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import torch

from sfumato.errors import InputError


@runtime_checkable
class NoiseSource(Protocol):
    """Standard normal numbers on demand; each call gives the next ones."""

    def draw(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> torch.Tensor:
        """``shape[0]`` pictures of noise."""
        ...


class OneEach(list[torch.Generator]):
    """A generator for each picture, from which it draws all that it draws alone.

    Of a plain list, pipelines of diffusers take only the first for what all pictures share, such as
    the encoded picture to begin from.
    """


def seeds_of(generator: Generators) -> tuple[int, ...] | None:
    """The seed of each picture; None where pictures have none of their own."""
    if isinstance(generator, OneEach):
        return tuple(own.initial_seed() % 2**64 for own in generator)
    return getattr(before_start(generator), "seeds", None)


def before_start(generator: Generators) -> Generators:
    """What to draw noise from that is needed before the noise to start from.

    Sources that treat the latter in a way of its own have another one for it.
    """
    return getattr(generator, "before_start", generator)


Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | NoiseSource | None


class GeneratorNoise:
    """Noise from torch generators, number for number as diffusers draws it.

    Args:
        generator: one for the whole batch, a list with one per picture, or None for torch's
            default generator (set by ``torch.manual_seed``).
    """

    def __init__(self, generator: Generators = None) -> None:
        self.generator = generator

    def draw(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> torch.Tensor:
        return randn_tensor(shape, generator=self.generator, dtype=dtype, device=device)


class SeededNoise:
    """Noise with one seed per picture, drawn on the CPU in float32 and then converted.

    The same seed gives the same picture alone, in a batch, on any device and in any precision.

    Args:
        seeds: one per picture, 0 to 2**64 - 1.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = checked_seeds(seeds)
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def draw(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> torch.Tensor:
        check_count(shape, self.seeds)
        one = (1, *shape[1:])
        return torch.cat([torch.randn(one, generator=g) for g in self._generators]).to(
            device, dtype
        )

    @staticmethod
    def randn(seed: int, shape: Sequence[int]) -> torch.Tensor:
        """The first numbers of a seed, in float32."""
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Seeds as a tuple; `InputError` for one that is no integer from 0 to 2**64 - 1."""
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise InputError(f"A seed has to be an integer from 0 to 2**64 - 1 but is {seed!r}.")
    return tuple(seeds)


def check_count(shape: Sequence[int], seeds: Sequence[int]) -> None:
    """Raise `InputError` unless there is a seed for every picture."""
    if shape[0] != len(seeds):
        raise InputError(f"{shape[0]} pictures are asked for, but there are {len(seeds)} seeds.")


def randn_tensor(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Standard normal numbers, drawn as diffusers draws them.

    A generator on the CPU draws on the CPU, in ``dtype``, whatever ``device`` is. A list of one
    generator counts as that generator; of a longer list each draws its own picture. A noise source
    draws in its own way.

    Raises:
        InputError: when a generator lives on a GPU and ``device`` is the CPU, or a list of
            generators does not have one for each picture.
    """
    target = torch.device(device or "cpu")
    if isinstance(generator, NoiseSource):
        return generator.draw(shape, dtype or torch.get_default_dtype(), target)
    if isinstance(generator, Sequence):
        if len(generator) == 1:
            return randn_tensor(shape, generator[0], target, dtype)
        if len(generator) != shape[0]:
            raise InputError(
                f"You have passed a list of generators of length {len(generator)}, but requested an"
                f" effective batch size of {shape[0]}.",
                hint="Make sure the batch size matches the length of the generators.",
            )
        one = (1, *shape[1:])
        return torch.cat([randn_tensor(one, g, target, dtype) for g in generator])
    source = target if generator is None else generator.device
    if source.type != target.type and source.type != "cpu":
        raise InputError(
            f"Cannot generate a {target} tensor from a generator of type {source.type}."
        )
    return torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype).to(target)
