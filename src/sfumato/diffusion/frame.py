"""How a run writes its pictures: the levels of x, what the network sees of it, what answers mean.

Every sampler is written once, for ``x = alpha * image + sigma * noise`` with any alpha and sigma.
What alpha and sigma are is a matter of the run's frame, and much of what is known under two names
is one method in two frames: DDIM is Euler's method, and with noise the ancestral one.

    as_trained       x as the network was trained on it         DDIM, DPM-Solver, UniPC, ...
    over_sigma       x = image + sigma * noise, scaled down     Euler and k-diffusion's samplers
                     for the network
    preconditioned   the same, for networks of Karras et al.    EDM
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sfumato.diffusion.plan import DENOISED, OUTPUT, Column, Limit, Plan, X
from sfumato.diffusion.schedule import Array, Levels, Schedule, Timesteps
from sfumato.errors import ConfigError

#: Divides what is limited afterwards, in place of 0.
LEAST_ALPHA = 1e-12


@dataclass(frozen=True, eq=False)
class Frame:
    """The calls of a run. ``n`` rows, one per call of the network.

    Attributes:
        timesteps: ``(n,)``; what the network is told.
        now: levels of x at each call.
        next: levels where each call's step ends.
        input_scale: ``(n,)``; the network sees ``input_scale * x``.
        denoised: ``(n, 2)``, weights of x and of the network's output in the picture that it has
            in mind.
        epsilon: ``(n, 2)``, likewise for the noise that it has in mind.
        limit: what happens to the picture before it is used.
        init_sigma: standard deviation of x before the first call, for a start from pure noise.
    """

    timesteps: Timesteps
    now: Levels
    next: Levels
    input_scale: Array
    denoised: Array
    epsilon: Array
    limit: Limit | None = None
    init_sigma: float = 1.0

    def __len__(self) -> int:
        return len(self.timesteps)

    def answers(self, *, image: bool, limited: bool | None = None) -> Array:
        """Weights ``(n, 5)`` over `Column` of what a sampler remembers of each call.

        Args:
            image: remember the denoised picture; otherwise the noise.
            limited: derive the noise from the picture after its limit rather than straight from
                the output; if there is a limit, unless said otherwise.
        """
        weights = np.zeros((len(self), len(Column)))
        if image:
            weights[:, DENOISED] = 1
        elif self.limit is not None if limited is None else limited:
            weights[:, X] = 1 / self.now.sigma
            weights[:, DENOISED] = -self.now.alpha / self.now.sigma
        else:
            weights[:, [X, OUTPUT]] = self.epsilon
        return weights

    def plan(self, base: Array, update: Array, **more: Any) -> Plan:
        """A table with this run's calls; ``more`` are other fields of `Plan`."""
        fields: dict[str, Any] = {
            "draws": np.zeros(len(self), dtype=bool),
            "denoised": np.pad(self.denoised, ((0, 0), (0, 1))),
            **more,
        }
        return Plan(
            timesteps=self.timesteps,
            sigmas=self.now.ratio,
            input_scale=self.input_scale,
            base=base,
            update=update,
            init_sigma=self.init_sigma,
            limit=self.limit,
            **fields,
        )


def as_trained(
    schedule: Schedule, prediction: str = "epsilon", *, limit: Limit | None = None
) -> Frame:
    """x as the network was trained on it: it sees x as it is.

    Args:
        schedule: the way.
        prediction: what the network predicts, see `to_denoised`.
        limit: clip or threshold for the denoised picture. Even where x is nothing but noise it
            makes a picture of what differs from the predicted noise.
    """
    read = schedule.now
    if limit is not None:
        read = Levels(np.maximum(read.alpha, LEAST_ALPHA), read.sigma)
    return Frame(
        timesteps=schedule.timesteps,
        now=schedule.now,
        next=schedule.next,
        input_scale=np.ones(len(schedule)),
        denoised=to_denoised(read, prediction),
        epsilon=to_epsilon(schedule.now, prediction),
        limit=limit,
    )


def over_sigma(
    schedule: Schedule,
    prediction: str = "epsilon",
    *,
    limit: Limit | None = None,
    init_sigma: float | None = None,
) -> Frame:
    """``x = image + sigma * noise``, where sigma is the ratio of the schedule's levels.

    Args:
        schedule: the way.
        prediction: what the network predicts, see `to_denoised`.
        limit: clip or threshold for the denoised picture.
        init_sigma: noise at the start; the first sigma if not given.
    """
    scale = schedule.now.alpha  # x times this is x as in training
    denoised, epsilon = (of(schedule.now, prediction) for of in (to_denoised, to_epsilon))
    epsilon[:, 0] *= scale
    denoised[:, 0] = 1 if prediction == "epsilon" else denoised[:, 0] * scale
    sigma, following = schedule.now.ratio, schedule.next.ratio
    return Frame(
        timesteps=schedule.timesteps,
        now=Levels(np.ones_like(sigma), sigma),
        next=Levels(np.ones_like(sigma), following),
        input_scale=scale,
        denoised=denoised,
        epsilon=epsilon,
        limit=limit,
        init_sigma=float(sigma[0]) if init_sigma is None else init_sigma,
    )


def preconditioned(
    timesteps: Timesteps,
    sigmas: Array,
    prediction: str = "epsilon",
    *,
    sigma_data: float = 0.5,
    limit: Limit | None = None,
    init_sigma: float | None = None,
) -> Frame:
    """``x = image + sigma * noise`` for a network with EDM's scalings (arXiv:2206.00364, table 1).

    Args:
        timesteps: ``(n,)``, what the network is told.
        sigmas: ``(n + 1,)``, the levels that x passes through.
        prediction: ``epsilon`` as in the paper; with ``v_prediction`` the output has the other
            sign.
        sigma_data: standard deviation of the pictures.
        limit: clip or threshold for the denoised picture.
        init_sigma: noise at the start; the first sigma if not given.
    """
    sigma, ones = sigmas[:-1], np.ones(len(timesteps))
    spread = np.sqrt(sigma**2 + sigma_data**2)
    sign = -1.0 if prediction == "v_prediction" else 1.0
    skip, out = (sigma_data / spread) ** 2, sign * sigma * sigma_data / spread
    return Frame(
        timesteps=timesteps,
        now=Levels(ones, sigma),
        next=Levels(ones, sigmas[1:]),
        input_scale=1 / spread,
        denoised=np.stack([skip, out], axis=1),
        epsilon=np.stack([(1 - skip) / sigma, -out / sigma], axis=1),
        limit=limit,
        init_sigma=float(sigma[0]) if init_sigma is None else init_sigma,
    )


def to_denoised(levels: Levels, prediction: str) -> Array:
    """Weights ``(n, 2)`` that turn x and the network's output into the denoised picture.

    For ``x = alpha * image + sigma * noise``. Predictions: ``epsilon`` (the noise),
    ``v_prediction`` (alpha * noise - sigma * image, arXiv:2202.00512), ``sample`` (the image),
    ``flow_prediction`` (noise - image, with alpha = 1 - sigma).
    """
    alpha, sigma = levels.alpha, levels.sigma
    zero, one = np.zeros_like(alpha), np.ones_like(alpha)
    if prediction == "epsilon":
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.stack([1 / alpha, -sigma / alpha], axis=1)
    if prediction == "v_prediction":
        return np.stack([alpha, -sigma], axis=1)
    if prediction == "flow_prediction":
        return np.stack([one, -sigma], axis=1)
    if prediction in ("sample", "original_sample"):
        return np.stack([zero, one], axis=1)
    raise ConfigError(
        f"prediction_type given as {prediction} must be one of `epsilon`, `sample`, or"
        " `v_prediction`"
    )


def to_epsilon(levels: Levels, prediction: str) -> Array:
    """Weights ``(n, 2)`` that turn x and the network's output into the predicted noise."""
    alpha, sigma = levels.alpha, levels.sigma
    if prediction == "epsilon":
        return np.stack([np.zeros_like(alpha), np.ones_like(alpha)], axis=1)
    if prediction == "v_prediction":
        return np.stack([sigma, alpha], axis=1)
    to_image = to_denoised(levels, prediction)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack(
            [(1 - alpha * to_image[:, 0]) / sigma, -alpha * to_image[:, 1] / sigma], axis=1
        )
