"""The distribution that an autoencoder's encoder describes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


class DiagonalGaussianDistribution:
    """Independent Gaussians over latents.

    Args:
        parameters: ``(N, 2C, H, W)``, mean and log-variance; the latter is clamped to [-30, 20].
        deterministic: treat the variance as zero.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.deterministic = deterministic
        if deterministic:
            self.std = self.var = torch.zeros_like(self.mean)
        else:
            self.std, self.var = torch.exp(0.5 * self.logvar), torch.exp(self.logvar)

    def sample(self, generator: Generators = None) -> Tensor:
        """Draw latents ``(N, C, H, W)``.

        Args:
            generator: one generator, or one per latent; they may live on the CPU while the
                latents do not. None draws from torch's global generator.
        """
        return self.mean + self.std * _normal_like(self.mean, generator)

    def mode(self) -> Tensor:
        """The most likely latents: the mean."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """Kullback-Leibler divergence per sample in nats, ``(N,)``.

        Without ``other`` it is taken from the standard normal distribution.
        """
        if self.deterministic:
            return torch.zeros(1)
        if other is None:
            terms = self.mean.square() + self.var - 1.0 - self.logvar
        else:
            squares = (self.mean - other.mean).square() + self.var
            terms = squares / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        """Negative log-likelihood of ``sample`` in nats, summed over ``dims``."""
        if self.deterministic:
            return torch.zeros(1)
        terms = math.log(2 * math.pi) + self.logvar + (sample - self.mean).square() / self.var
        return 0.5 * terms.sum(dim=tuple(dims))


def _normal_like(x: Tensor, generator: Generators) -> Tensor:
    if isinstance(generator, Sequence):
        if len(generator) == 1:
            return _normal_like(x, generator[0])
        return torch.cat([_normal_like(x[i : i + 1], g) for i, g in enumerate(generator)])
    device = x.device if generator is None else generator.device
    noise = torch.randn(tuple(x.shape), generator=generator, device=device, dtype=x.dtype)
    return noise.to(x.device)
