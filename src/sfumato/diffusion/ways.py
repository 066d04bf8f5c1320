"""The usual ways from noise to picture: timesteps and levels as each family of samplers has them.

`schedule` holds the ingredients; here they are put together. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.diffusion.schedule import (
    SIGMA_RAMPS,
    TABLE_SCHEDULES,
    Array,
    Levels,
    Schedule,
    Timesteps,
    log_table,
    sigma_at,
    spaced_timesteps,
    timestep_at,
)
from sfumato.errors import ConfigError, InputError

FINAL_SIGMAS: tuple[str, ...] = ("zero", "sigma_min")


@dataclass(frozen=True)
class Ramp:
    """Where sigmas lie, if not where the timesteps put them.

    Attributes:
        kind: ``karras``, ``exponential``, ``beta`` or None.
        low: smallest sigma; that of the schedule if None.
        high: largest sigma; that of the schedule if None.
    """

    kind: str | None = None
    low: float | None = None
    high: float | None = None

    def __call__(self, low: float, high: float, n: int) -> Array:
        """``n`` falling sigmas, from ``high`` to ``low`` unless the ramp has its own ends."""
        assert self.kind is not None
        low = low if self.low is None else self.low
        high = high if self.high is None else self.high
        return SIGMA_RAMPS[self.kind](low, high, n)


def final_sigma(kind: str, smallest: float) -> float:
    """Sigma at the end of the last step: ``zero`` noise or ``sigma_min``."""
    if kind not in FINAL_SIGMAS:
        raise ConfigError(
            f"`final_sigmas_type` must be one of 'zero', or 'sigma_min', but got {kind}"
        )
    return 0.0 if kind == "zero" else smallest


# --- By timestep: DDIM, DDPM, PNDM, LCM, TCD --------------------------------------------------


def levels_at(timesteps: Timesteps, acp: Array, below_zero: float = 1.0) -> Levels:
    """Levels at whole timesteps; negative ones have ``alphas_cumprod`` of ``below_zero``.

    Raises:
        InputError: for a timestep that training did not have.
    """
    if (timesteps >= len(acp)).any():
        raise InputError(
            f"Timestep {timesteps.max():g} lies outside of the {len(acp)} training timesteps.",
            hint="Take fewer steps or a smaller `steps_offset`.",
        )
    return Levels.from_alphas_cumprod(np.where(timesteps >= 0, acp[timesteps], below_zero))


def strided(
    timesteps: NDArray[np.int64], stride: int, acp: Array, below_zero: float = 1.0
) -> Schedule:
    """Each step ends ``stride`` training timesteps lower, wherever the next one begins."""
    before = levels_at(timesteps - stride, acp, below_zero)
    return Schedule(timesteps, levels_at(timesteps, acp), before)


def chained(
    timesteps: NDArray[np.int64], last: int, acp: Array, below_zero: float = 1.0
) -> Schedule:
    """Each step ends where the next one begins; the last ends at timestep ``last``."""
    following = np.append(timesteps[1:], last)
    return Schedule(timesteps, levels_at(timesteps, acp), levels_at(following, acp, below_zero))


def distilled_timesteps(
    train_steps: int, original_steps: int, strength: float = 1.0
) -> NDArray[np.int64]:
    """The rising timesteps that a consistency model was distilled on, up to ``strength``."""
    return np.arange(1, int(original_steps * strength) + 1) * (train_steps // original_steps) - 1


def evenly_chosen(origin: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """A falling choice of ``steps`` out of rising timesteps, with the last one among them."""
    places = np.floor(np.linspace(0, len(origin), num=steps, endpoint=False)).astype(np.int64)
    return origin[::-1][places]


# --- By sigma, on image + sigma * noise: Euler and its relatives ------------------------------


def sigmas_at_timesteps(
    timesteps: NDArray[Any],
    table: Array,
    *,
    ramp: Ramp,
    interpolation: str = "linear",
    final: str = "zero",
    rounded: bool = False,
) -> tuple[NDArray[Any], Array]:
    """Fractional timesteps and the ``n + 1`` sigmas that go with them.

    Args:
        timesteps: ``(n,)``, falling, float32 or float64.
        table: sigma at each training timestep, see `schedule.training_sigmas`.
        ramp: with a kind, the sigmas are spread by it between those of the first and the last
            timestep, and the timesteps follow.
        interpolation: ``linear`` in sigma between training timesteps, or ``log_linear``: spread
            evenly in log sigma over the whole table.
        final: ``zero`` or ``sigma_min``.
        rounded: take the nearest whole timestep for a sigma of the ramp.
    """
    n = len(timesteps)
    if interpolation == "linear":
        sigmas = sigma_at(timesteps, table)
    elif interpolation == "log_linear":
        sigmas = np.exp(np.linspace(math.log(table[-1]), math.log(table[0]), n + 1))
    else:
        raise ConfigError(
            f"{interpolation} is not implemented. Please specify interpolation_type to either"
            " 'linear' or 'log_linear'"
        )
    if ramp.kind is not None:
        sigmas = ramp(float(sigmas[-1]), float(sigmas[0]), n)
        found = timestep_at(sigmas, table)
        timesteps = (found.round() if rounded else found).astype(timesteps.dtype)
    end = final_sigma(final, float(table[0]))
    return timesteps, np.append(sigmas, end)


def with_corrections(
    timesteps: NDArray[np.float32], sigmas: Array
) -> tuple[NDArray[np.float32], Array]:
    """Every call of Heun's method: each sigma but the first and the last twice."""
    return np.repeat(timesteps, 2)[1:], np.concatenate(
        [[sigmas[0]], np.repeat(sigmas[1:-1], 2), [0]]
    )


def with_middles(
    timesteps: NDArray[Any], sigmas: Array, table: Array, *, ancestral: float = 0.0
) -> Schedule:
    """Every call of the midpoint method: each step's start and, in log sigma, its middle.

    Args:
        timesteps: ``(n,)`` of the steps' starts.
        sigmas: ``(n + 1,)``, the last one 0.
        table: sigma at each training timestep.
        ancestral: share of noise of an ancestral step. The middle is that of the way down.
    """
    start, end = sigmas[:-2], sigmas[1:-1]
    down = end * np.sqrt(1 - ancestral**2 * (1 - (end / start) ** 2))
    middle = np.sqrt(start * down)
    middle_t = timestep_at(middle, table).astype(timesteps.dtype)
    calls = np.append(np.stack([start, middle], axis=1).flatten(), sigmas[-2])
    ends = np.append(np.stack([middle, end], axis=1).flatten(), sigmas[-1])
    all_t = np.append(np.stack([timesteps[:-1], middle_t], axis=1).flatten(), timesteps[-1])
    return Schedule(all_t, Levels.from_ratio(calls), Levels.from_ratio(ends))


def with_calls_ahead(timesteps: NDArray[Any], sigmas: Array) -> Schedule:
    """Every call of Heun++: the start of each step, its end, and the end of the next step.

    The last step has one call, the one before it two. Arguments as of `with_middles`.
    """
    steps = len(timesteps)
    calls: list[int] = []
    ends: list[int] = []
    for step in range(steps):
        ahead = min(3, steps - step)
        calls += range(step, step + ahead)
        ends += [step + 1, step + ahead - 1, step + 1][:ahead]
    now, following = Levels.from_ratio(sigmas[calls]), Levels.from_ratio(sigmas[ends])
    return Schedule(timesteps[calls], now, following)


def with_restarts(sigmas: Array, table: Array) -> Schedule:
    """Every call of Restart: Heun's steps, of which the later ones are taken several times.

    From 20 steps on, the way goes back up from a sigma of 0.1 to one of 2 and down again, in a
    quarter of the steps twice from 36 on, in 9 once before; it then follows Karras' schedule
    between its ends. These are the numbers of the program that made the sampler known.

    Args:
        sigmas: ``(n + 1,)``, falling.
        table: sigma at each training timestep.
    """
    steps = len(sigmas) - 1
    pairs = list(pairwise(sigmas.tolist()))
    if steps >= 20:
        again, times = (steps // 4, 2) if steps >= 36 else (9, 1)
        low, high = float(sigmas[-2]), float(sigmas[0])
        sigmas = np.append(SIGMA_RAMPS["karras"](low, high, steps - again * times), 0.0)
        pairs = list(pairwise(sigmas.tolist()))
        bottom, top = (int(np.abs(sigmas - level).argmin()) for level in (0.1, 2.0))
        if 0 <= top < bottom:
            back = SIGMA_RAMPS["karras"](float(sigmas[bottom]), float(sigmas[top]), again + 1)
            pairs[bottom:bottom] = list(pairwise(back.tolist())) * times
    ways = [[(start, end), (end, end)] if end else [(start, end)] for start, end in pairs]
    now, following = np.array([call for way in ways for call in way]).T
    timesteps = timestep_at(now, table).astype(np.float32)
    return Schedule(timesteps, Levels.from_ratio(now), Levels.from_ratio(following))


def sigmas_by_name(
    name: str, steps: int, table: Array, *, low: float | None = None, high: float | None = None
) -> Array:
    """``steps`` falling sigmas of a schedule, and the 0 after them.

    Args:
        name: a key of `schedule.SIGMA_RAMPS` or `schedule.TABLE_SCHEDULES`.
        steps: how many.
        table: sigma at each training timestep.
        low: smallest sigma of a ramp; the smallest of training if not given.
        high: largest one.
    """
    if name in TABLE_SCHEDULES:
        return np.append(TABLE_SCHEDULES[name](table, steps), 0.0)
    low = float(table[0]) if low is None else low
    high = float(table[-1]) if high is None else high
    return np.append(SIGMA_RAMPS[name](low, high, steps), 0.0)


def in_thirds(high: float, low: float, orders: Sequence[int]) -> Array:
    """Sigmas of DPM fast: steps even in log sigma, and the calls of each even in it.

    Args:
        high: sigma to start from.
        low: sigma to end at.
        orders: of each call: 1, 2, 3, 1, 2, 3 and so on; a 1 begins a step.
    """
    begins = [row for row, order in enumerate(orders) if order == 1]
    ends = np.linspace(math.log(high), math.log(low), len(begins) + 1)
    return np.exp(np.interp(np.arange(len(orders) + 1), [*begins, len(orders)], ends))


# --- By sigma, on alpha * image + sigma * noise: DPM-Solver, UniPC, DEIS ----------------------


def solver_timesteps(
    spacing: str, steps: int, acp: Array, *, offset: int, lambda_min: float = -math.inf
) -> NDArray[np.int64]:
    """Whole timesteps of the DPM-Solver family.

    Args:
        spacing: see `schedule.spaced_timesteps`.
        steps: how many.
        acp: the training table.
        offset: for ``leading``.
        lambda_min: leave out the levels with ``log(alpha / sigma)`` below this.
    """
    last = levels_above(lambda_min, acp)
    values = spaced_timesteps(spacing, steps, len(acp), offset=offset, extra_point=True, last=last)
    return values.round().astype(np.int64)


def rising_timesteps(
    spacing: str, steps: int, acp: Array, *, offset: int, lambda_min: float = -math.inf
) -> NDArray[np.int64]:
    """Whole timesteps from picture to noise, for inversion; arguments as of `solver_timesteps`."""
    last, points = levels_above(lambda_min, acp), steps if spacing == "trailing" else steps + 1
    values = spaced_timesteps(spacing, points, len(acp), offset=offset, last=last)
    return values[::-1][:steps].round().astype(np.int64)


def levels_above(lambda_min: float, acp: Array) -> int:
    """How many training levels have a ``log(alpha / sigma)`` of ``lambda_min`` or more."""
    with np.errstate(divide="ignore"):
        lambdas = 0.5 * (np.log(acp) - np.log1p(-acp))
    return len(acp) - int(np.searchsorted(lambdas[::-1], lambda_min))


def solver_sigmas(
    timesteps: NDArray[np.int64],
    table: Array,
    *,
    ramp: Ramp,
    rounded: bool,
    rising: bool = False,
) -> tuple[NDArray[np.int64], Array]:
    """Whole timesteps and the ``n`` sigmas that go with them.

    Args:
        timesteps: ``(n,)``, falling.
        table: sigma at each training timestep.
        ramp: with a kind (also ``lu``), the sigmas are spread by it over the whole table.
        rounded: take the nearest timestep for a sigma of the ramp, else the one below.
        rising: from the smallest sigma to the largest.
    """
    n = len(timesteps)
    if ramp.kind is None:
        return timesteps, sigma_at(timesteps, table)
    if ramp.kind == "lu":  # even steps in log(alpha / sigma), arXiv:2206.00927 section 4
        logs = log_table(table)
        sigmas = np.exp(np.linspace(logs[-1], logs[0], n))
    else:
        low, high = float(table[0]), float(table[-1])
        sigmas = ramp(high, low, n) if rising else ramp(low, high, n)
    found = timestep_at(sigmas, table)
    return (found.round() if rounded else found).astype(np.int64), sigmas


def flow_sigmas(steps: int, train_steps: int, shift: float) -> tuple[NDArray[np.int64], Array]:
    """Timesteps and sigmas of flow matching (alpha = 1 - sigma), pushed to the noisy side."""
    share = 1.0 - np.linspace(1, 1 / train_steps, steps + 1)
    sigmas = (shift * share / (1 + (shift - 1) * share))[::-1][:-1]
    return (sigmas * train_steps).astype(np.int64), sigmas


def flow_schedule(timesteps: NDArray[np.int64], sigmas: Array) -> Schedule:
    """A way of flow matching through ``n + 1`` sigmas."""
    levels = Levels(1.0 - sigmas, sigmas)
    return Schedule(timesteps, levels[:-1], levels[1:])
