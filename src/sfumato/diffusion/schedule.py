"""Noise levels: which timesteps a picture passes through, and how noisy it is at each.

First station of the flow; NumPy only. `NoiseConfig` describes how the network was trained,
`alphas_cumprod` gives its table, the spacing functions choose timesteps, and a `Schedule` holds
for every step the level where the network is asked and the level where the step ends:

    x = alpha * image + sigma * noise

The tables of published checkpoints were made in float32. They are rounded here at the same places
(so that a timestep found by interpolation is the same one); everything after them is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import ConfigError, InputError

Array: TypeAlias = NDArray[np.float64]
Timesteps: TypeAlias = NDArray[Any]  # int64 or float32, as the sampler gives them
Spacing: TypeAlias = Literal["leading", "linspace", "trailing"]
SPACINGS: tuple[str, ...] = ("linspace", "leading", "trailing")
#: Less than this of an image's variance is nothing: its ratio to the noise would overflow float32.
_LEAST_SIGNAL = 2.0**-100

BETA_SCHEDULES: tuple[str, ...] = ("linear", "scaled_linear", "squaredcos_cap_v2", "exp", "sigmoid")


@dataclass(frozen=True)
class NoiseConfig:
    """How noise was added in training.

    Attributes:
        beta_schedule: ``linear``, ``scaled_linear`` (linear in the square root, as latent
            diffusion does), ``squaredcos_cap_v2`` (cosine), ``exp`` or ``sigmoid``.
        trained_betas: the betas themselves; then the three fields before are not used.
        rescale_betas_zero_snr: make the last level pure noise (arXiv:2305.08891, algorithm 1).
        pin_last: with it, a last ``alphas_cumprod`` of 2**-24 instead of 0, so that the ratio
            sigma / alpha stays finite. Samplers that work with that ratio need it.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    pin_last: bool = False


@dataclass(frozen=True, eq=False)
class Levels:
    """Noise levels ``x = alpha * image + sigma * noise``; two arrays of one length."""

    alpha: Array
    sigma: Array

    @property
    def ratio(self) -> Array:
        """``sigma / alpha``: the sigma of Karras et al. and of the Euler family."""
        with np.errstate(divide="ignore"):
            return self.sigma / self.alpha

    @property
    def log_snr(self) -> Array:
        """``log(alpha / sigma)``: the lambda of the DPM-Solver papers; infinite without noise."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)

    @classmethod
    def from_alphas_cumprod(cls, values: Array) -> Levels:
        """Levels of a variance-preserving process, ``alpha**2 = values``."""
        return cls(np.sqrt(values), np.sqrt(1.0 - values))

    @classmethod
    def from_ratio(cls, ratio: Array) -> Levels:
        """Levels of a variance-preserving process with ``sigma / alpha = ratio``."""
        alpha = 1.0 / np.sqrt(ratio**2 + 1.0)
        with np.errstate(invalid="ignore"):  # pure noise: infinity times zero is one here
            sigma = np.where(np.isinf(ratio), 1.0, ratio * alpha)
        return cls(alpha, sigma)

    def __getitem__(self, rows: slice) -> Levels:
        return Levels(self.alpha[rows], self.sigma[rows])


@dataclass(frozen=True, eq=False)
class Schedule:
    """The way of one picture: where the network is asked, and where each step ends.

    Attributes:
        timesteps: what the network is told, in the order of sampling; int64 or float32.
        now: level at each timestep.
        next: level at the end of each step. Usually ``now`` shifted by one; the DDIM family
            steps by a constant number of training timesteps instead.
    """

    timesteps: Timesteps
    now: Levels
    next: Levels

    def __len__(self) -> int:
        return len(self.timesteps)

    def __getitem__(self, rows: slice) -> Schedule:
        """A part of the way, such as ``schedule[start:]`` for image-to-image."""
        return Schedule(self.timesteps[rows], self.now[rows], self.next[rows])

    @classmethod
    def from_sigmas(cls, timesteps: Timesteps, sigmas: Array) -> Schedule:
        """From ``n`` timesteps and the ``n + 1`` ratios sigma / alpha that they pass through."""
        levels = Levels.from_ratio(np.asarray(sigmas, dtype=np.float64))
        return cls(timesteps, levels[:-1], levels[1:])


# --- The training table -----------------------------------------------------------------------


def betas(noise: NoiseConfig) -> NDArray[np.float32]:
    """Variance added at each training timestep, float32, shape ``(num_train_timesteps,)``."""
    n = noise.num_train_timesteps
    if noise.trained_betas is not None:
        values = np.asarray(noise.trained_betas, dtype=np.float32)
    elif noise.beta_schedule == "linear":
        values = _linspace32(noise.beta_start, noise.beta_end, n)
    elif noise.beta_schedule == "scaled_linear":
        values = _linspace32(noise.beta_start**0.5, noise.beta_end**0.5, n) ** 2
    elif noise.beta_schedule == "squaredcos_cap_v2":
        values = _betas_of(lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2, n)
    elif noise.beta_schedule == "exp":
        values = _betas_of(lambda t: math.exp(-12 * t), n)
    elif noise.beta_schedule == "sigmoid":
        gate = np.float32(1) / (np.float32(1) + np.exp(-_linspace32(-6.0, 6.0, n)))
        span = np.float32(noise.beta_end - noise.beta_start)
        values = gate * span + np.float32(noise.beta_start)
    else:
        allowed = ", ".join(repr(name) for name in BETA_SCHEDULES)
        raise ConfigError(
            f"`beta_schedule` is {noise.beta_schedule!r}; it has to be one of {allowed}."
        )
    return _zero_terminal_snr(values) if noise.rescale_betas_zero_snr else values


def alphas_cumprod(noise: NoiseConfig) -> Array:
    """Share of the image's variance left at each training timestep (the paper's alpha bar).

    Raises:
        ConfigError: unless there is some noise at the first and something left of the image at
            all but a last one that is meant to be pure noise.
    """
    with np.errstate(invalid="ignore", divide="ignore"):  # what they would warn of is refused
        values = _cumprod32(np.float32(1) - betas(noise)).astype(np.float64)
    signal = values[:-1] if noise.rescale_betas_zero_snr else values
    falls = bool((np.diff(values) < 0).all()) and values[-1] >= 0.0 and values[0] < 1.0
    if not falls or (signal < _LEAST_SIGNAL).any():
        raise ConfigError(
            f"With these betas ({noise.beta_schedule!r}, {noise.beta_start:g} to"
            f" {noise.beta_end:g}, {noise.num_train_timesteps} timesteps) the training timesteps do"
            " not lead from a picture with a little noise to noise with a little of the picture.",
            hint="Take the betas that the model was trained with; Stable Diffusion has 0.00085 to"
            " 0.012, 'scaled_linear'.",
        )
    if noise.rescale_betas_zero_snr and noise.pin_last:
        values[-1] = 2.0**-24
    return values


def training_sigmas(acp: Array) -> Array:
    """Ratio sigma / alpha at each training timestep, rising; float32 numbers."""
    narrow = acp.astype(np.float32)
    return np.sqrt((np.float32(1) - narrow) / narrow).astype(np.float64)


def _linspace32(start: float, end: float, n: int) -> NDArray[np.float32]:
    """Evenly spaced float32 numbers, counted from both ends with one rounding each."""
    first, last = float(np.float32(start)), float(np.float32(end))
    if n == 1:
        return np.array([first], dtype=np.float32)
    step = float((np.float32(last) - np.float32(first)) / np.float32(n - 1))
    i = np.arange(n)
    values = np.where(i < n // 2, first + step * i, last - step * (n - 1 - i))
    return values.astype(np.float32)


def _cumprod32(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.cumprod(values.astype(np.float64)).astype(np.float32)


def _betas_of(alpha_bar: Callable[[float], float], n: int) -> NDArray[np.float32]:
    values = [min(1 - alpha_bar((i + 1) / n) / alpha_bar(i / n), 0.999) for i in range(n)]
    return np.array(values, dtype=np.float32)


def _zero_terminal_snr(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shift and scale sqrt(alpha bar) so that the last is 0 and the first stays."""
    root = np.sqrt(_cumprod32(np.float32(1) - values))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    bar = root**2
    return np.float32(1) - np.concatenate([bar[:1], bar[1:] / bar[:-1]])


# --- Which timesteps --------------------------------------------------------------------------


def spaced_timesteps(
    spacing: str,
    steps: int,
    train_steps: int,
    *,
    offset: int = 0,
    extra_point: bool = False,
    last: int | None = None,
) -> Array:
    """Falling timesteps, before any rounding of ``linspace`` (table 2 of arXiv:2305.08891).

    Args:
        spacing: ``leading`` (multiples of a whole stride, plus ``offset``), ``linspace`` (both
            ends included) or ``trailing`` (the noisy end included).
        steps: how many.
        train_steps: number of training timesteps to choose from.
        offset: added in ``leading``.
        extra_point: divide into ``steps + 1`` points and drop the cleanest, as the DPM-Solver
            family does for ``leading`` and ``linspace``.
        last: choose from the first ``last`` training timesteps only. ``trailing`` then keeps its
            stride and gives fewer timesteps.

    Raises:
        InputError: when there are more steps than ``leading`` has timesteps for.
    """
    points = steps + 1 if extra_point else steps
    last = train_steps if last is None else last
    if spacing == "linspace":
        return np.linspace(0, last - 1, points)[::-1][:steps].copy()
    if spacing == "leading":
        if last < points:
            raise InputError(
                f"{steps} steps are too many for 'leading' timesteps: {points} points do not fit"
                f" into {last} timesteps.",
                hint="Take fewer steps, or timestep_spacing='trailing'.",
            )
        return (np.arange(points) * (last // points))[::-1][:steps].astype(float) + offset
    if spacing == "trailing":
        values = np.arange(last, 0, -train_steps / steps).round() - 1
        return values[values >= 0]  # a stride rounded down can give one more, below zero
    raise ConfigError(
        f"{spacing} is not supported. Please make sure to choose one of 'linspace', 'leading' or"
        " 'trailing'."
    )


# --- Which sigmas -----------------------------------------------------------------------------


def karras_sigmas(low: float, high: float, n: int, rho: float = 7.0) -> Array:
    """``n`` falling sigmas, evenly spaced in ``sigma**(1/rho)`` (arXiv:2206.00364, eq. 5)."""
    return karras_curve(np.linspace(0, 1, n), low, high, rho)


def karras_curve(ramp: Array, low: float, high: float, rho: float = 7.0) -> Array:
    """The same at places on the way: 0 is ``high`` and 1 is ``low``."""
    top, bottom = high ** (1 / rho), low ** (1 / rho)
    return (top + ramp * (bottom - top)) ** rho


def exponential_sigmas(low: float, high: float, n: int) -> Array:
    """``n`` falling sigmas, evenly spaced in their logarithm."""
    return np.exp(np.linspace(math.log(high), math.log(low), n))


def beta_sigmas(low: float, high: float, n: int, a: float = 0.6, b: float = 0.6) -> Array:
    """``n`` falling sigmas at quantiles of a beta distribution (arXiv:2407.12173)."""
    from sfumato.diffusion.quantiles import beta_quantile

    return low + beta_quantile(1 - np.linspace(0, 1, n), a, b) * (high - low)


def polyexponential_sigmas(low: float, high: float, n: int, rho: float = 1.0) -> Array:
    """``n`` falling sigmas, their logarithm a power of the step; `exponential_sigmas` for 1."""
    ramp = np.linspace(1, 0, n) ** rho
    return np.exp(math.log(low) + ramp * (math.log(high) - math.log(low)))


def kl_optimal_sigmas(low: float, high: float, n: int) -> Array:
    """``n`` falling sigmas, evenly spaced in their angle (arXiv:2404.14507, equation 12)."""
    return np.tan(np.linspace(math.atan(high), math.atan(low), n))


SIGMA_RAMPS: dict[str, Callable[[float, float, int], Array]] = {
    "karras": karras_sigmas,
    "exponential": exponential_sigmas,
    "polyexponential": polyexponential_sigmas,
    "beta": beta_sigmas,
    "kl_optimal": kl_optimal_sigmas,
}


def uniform_sigmas(table: Array, n: int) -> Array:
    """``n`` falling sigmas at evenly spaced timesteps, both ends of training included."""
    return _sigma_between(np.linspace(len(table) - 1, 0, n), table)


def sgm_uniform_sigmas(table: Array, n: int) -> Array:
    """``n`` falling sigmas at evenly spaced timesteps, the clean end left out."""
    return _sigma_between(np.linspace(len(table) - 1, 0, n + 1)[:n], table)


def simple_sigmas(table: Array, n: int) -> Array:
    """``n`` falling sigmas of training, evenly picked from the noisy end."""
    return table[-1 - (np.arange(n) * (len(table) / n)).astype(np.int64)]


def leading_sigmas(table: Array, n: int) -> Array:
    """``n`` falling sigmas of training, a whole stride apart from timestep 1 on: DDIM's.

    ComfyUI's ``ddim_uniform`` has one or a few more where the stride leaves room for them.
    """
    stride = len(table) // n
    first = 1 if (n - 1) * stride + 1 < len(table) else 0
    return table[first + np.arange(n) * stride][::-1].copy()


#: Sigmas in which ten steps go furthest: "Align your steps", arXiv:2404.14507.
AYS_SIGMAS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)


def ays_sigmas(table: Array, n: int) -> Array:
    """``n`` falling sigmas through `AYS_SIGMAS`, which are those of Stable Diffusion 1."""
    return np.exp(np.interp(np.linspace(0, 10, n), np.arange(11), np.log(AYS_SIGMAS)))


#: Schedules that know the levels of training.
TABLE_SCHEDULES: dict[str, Callable[[Array, int], Array]] = {
    "uniform": uniform_sigmas,
    "sgm_uniform": sgm_uniform_sigmas,
    "simple": simple_sigmas,
    "ddim_uniform": leading_sigmas,
    "align_your_steps": ays_sigmas,
}


def _sigma_between(timesteps: Array, table: Array) -> Array:
    """Sigma at fractional timesteps, linear in its logarithm as k-diffusion has it."""
    return np.exp(np.interp(timesteps, np.arange(len(table)), log_table(table)))


def sigma_at(timesteps: Timesteps, table: Array) -> Array:
    """Sigma at fractional timesteps, linear in between."""
    return np.interp(timesteps, np.arange(len(table)), table)


def log_table(table: Array) -> Array:
    """Logarithm of a float32 table, in float32 numbers."""
    return np.log(table.astype(np.float32)).astype(np.float64)


def timestep_at(sigmas: Array, table: Array) -> Array:
    """Fractional timesteps at which training had these sigmas; linear in log sigma."""
    logs = log_table(table)
    wanted = np.log(np.maximum(sigmas, 1e-10))
    # The last level below, not the first above: a pinned last level may lie out of order.
    below = (logs[:, None] <= wanted)[::-1]
    low = np.where(below.any(axis=0), len(logs) - 1 - below.argmax(axis=0), 0)
    low = low.clip(0, len(logs) - 2)
    weight = (logs[low] - wanted) / (logs[low] - logs[low + 1])
    return low + np.clip(weight, 0, 1)


def check_sigmas(values: object) -> Array:
    """The user's own sigmas as float64.

    Raises:
        InputError: if they are not finite, negative, or do not fall.
    """
    sigmas = np.asarray(values, dtype=np.float64)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise InputError(f"`sigmas` has to be a list of at least two numbers but is {values!r}.")
    if not np.isfinite(sigmas).all() or (sigmas < 0).any():
        raise InputError("`sigmas` holds a number that is negative, infinite or NaN.")
    if (np.diff(sigmas) >= 0).any():
        raise InputError(
            "`sigmas` have to fall from one to the next.", hint="Order them from noisy to clean."
        )
    return sigmas
