"""The noise levels of a run, for guidance that depends on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sfumato.errors import InputError


@dataclass(frozen=True, eq=False)
class Levels:
    """What is known of the noise at each timestep of a run.

    The network sees ``x = alpha * picture + sigma * noise`` with ``alpha**2 + sigma**2 = 1``; a
    level is ``sigma / alpha``.

    Attributes:
        level: timestep to level.
        following: timestep to the level after the step.
        share: timestep to the share of the steps that are done before it, 0 to below 1.
        prediction: what the network predicts: ``epsilon``, ``v_prediction`` or ``sample``.
    """

    level: dict[float, float]
    following: dict[float, float]
    share: dict[float, float]
    prediction: str = "epsilon"

    @classmethod
    def of(cls, scheduler: Any, timesteps: Tensor) -> Levels:
        """The levels of a scheduler's timesteps; for schedulers with diffusers' tables.

        Raises:
            InputError: when the scheduler does not say how noisy its timesteps are.
        """
        times = [float(t) for t in timesteps]
        levels = _levels(scheduler, times)
        level: dict[float, float] = {}
        following: dict[float, float] = {}
        share: dict[float, float] = {}
        for index, time in enumerate(times):
            lower = [later for later in levels[index + 1 :] if later < levels[index]]
            level.setdefault(time, levels[index])
            following.setdefault(time, lower[0] if lower else levels[-1])
            share.setdefault(time, index / len(times))
        prediction = scheduler.config.get("prediction_type", "epsilon")
        return cls(level, following, share, prediction.removeprefix("original_"))

    def weights(self, timestep: float) -> tuple[float, float]:
        """``alpha`` and ``sigma`` at a timestep."""
        level = self.level[timestep]
        alpha = 1 / np.hypot(1, level)
        return float(alpha), float(level * alpha)

    def to_picture(self, x: Tensor, output: Tensor, timestep: float) -> Tensor:
        """The picture that an output of the network means."""
        alpha, sigma = self.weights(timestep)
        if self.prediction == "sample":
            return output
        if self.prediction == "v_prediction":
            return alpha * x - sigma * output
        return (x - sigma * output) / alpha

    def to_output(self, x: Tensor, picture: Tensor, timestep: float) -> Tensor:
        """The inverse of `to_picture`."""
        alpha, sigma = self.weights(timestep)
        if self.prediction == "sample":
            return picture
        if self.prediction == "v_prediction":
            return (alpha * x - picture) / sigma
        return (x - alpha * picture) / sigma


def _levels(scheduler: Any, times: Sequence[float]) -> list[float]:
    """The level of each timestep, and that after the last."""
    own = [float(t) for t in scheduler.timesteps]
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) == len(own) + 1:
        begin = own.index(times[0])
        return [float(s) for s in sigmas[begin : begin + len(times) + 1]]
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise InputError(
            f"{type(scheduler).__name__} does not say how noisy its timesteps are, which this "
            "guidance depends on.",
            hint="Use another scheduler, such as DDIMScheduler.",
        )
    products = [float(table[int(time)]) for time in times]
    products.append(float(getattr(scheduler, "final_alpha_cumprod", 1.0)))
    return [float(np.sqrt((1 - p) / p)) if p > 0 else np.inf for p in products]
