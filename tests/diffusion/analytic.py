"""Networks with known answers: one that knows the picture, one that knows the distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sfumato.diffusion.denoise import denoise
from sfumato.diffusion.guidance import Network
from sfumato.diffusion.noise import GeneratorNoise
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.schedule import Levels


class Oracle:
    """Answers a plan's calls in order, about ``x = alpha * image + sigma * noise``.

    Args:
        plan: whose calls are answered.
        prediction: what to answer with.
        mean: of the pictures.
        spread: their standard deviation; 0 means that all pictures are ``mean``.
    """

    def __init__(
        self, plan: Plan, prediction: str, mean: float | torch.Tensor, spread: float = 0.0
    ) -> None:
        self.levels = Levels.from_ratio(plan.sigmas)
        self.prediction, self.mean, self.spread, self.call = prediction, mean, spread, 0

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor, context: Any) -> torch.Tensor:
        alpha = float(self.levels.alpha[self.call])
        sigma = float(self.levels.sigma[self.call])
        self.call += 1
        gain = alpha * self.spread**2 / (alpha**2 * self.spread**2 + sigma**2)
        image = self.mean + gain * (x - alpha * self.mean)
        noise = (x - alpha * image) / sigma
        if self.prediction == "epsilon":
            return noise
        return image if self.prediction == "sample" else alpha * noise - sigma * image


def finish(plan: Plan, network: Network, x: torch.Tensor) -> torch.Tensor:
    """The end of a run, with seeded noise."""
    noise = GeneratorNoise(torch.Generator().manual_seed(0))
    for step in denoise(network, x, None, plan, noise=noise):
        x = step.x
    return x


def log_sigmas(steps: int, high: float = 20.0, low: float = 0.1) -> np.ndarray:
    """``steps + 1`` falling sigmas, even in their logarithm."""
    return np.exp(np.linspace(np.log(high), np.log(low), steps + 1))
