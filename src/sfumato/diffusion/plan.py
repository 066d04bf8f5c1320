"""What a sampler is: a table of numbers, made before the first step.

Almost every sampler of latent diffusion is linear in tensors at hand. One row per call of the
network says so completely. With ``x`` the picture in progress:

    input    = input_scale * x                           what the network sees
    output   = network(input, timestep)                  guidance included
    denoised = x, output and noise, weighted             the picture that the network has in mind
    base     = x, or a point to go back to               where this step starts from
    x        = base, output, denoised, noise of this call and of earlier calls, weighted

Torch and JAX read the same table. It keeps no counter, so it is safe to share between threads,
can be started in the middle and written to JSON; `advance` applies a row. `frame` says what x is,
and `samplers.moves` fills tables in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sfumato.config import check_choice
from sfumato.diffusion.schedule import Array, Timesteps
from sfumato.errors import ConfigError, did_you_mean


class Column(IntEnum):
    """What a weight in `Plan.base` and `Plan.update` is multiplied with."""

    X = 0
    BASE = 1
    OUTPUT = 2
    DENOISED = 3
    NOISE = 4


X, BASE, OUTPUT, DENOISED, NOISE = Column

#: A sixth column, of samplers that also want to know the picture that the network has in mind for
#: the negative prompt alone; see `samplers.cfg_pp`.
NEGATIVE = len(Column)


@dataclass(frozen=True)
class Limit:
    """What happens to ``denoised`` before it is used; the one thing that is not linear.

    Attributes:
        clip: clamp to ``-clip .. clip``.
        quantile: dynamic thresholding (arXiv:2205.11487): clamp each picture to this quantile of
            its absolute values, at least 1 and at most ``maximum``, and divide by it.
    """

    clip: float | None = None
    quantile: float | None = None
    maximum: float = 1.0


@dataclass(frozen=True, eq=False)
class Plan:
    """A sampler's table. ``n`` rows, one per call of the network; ``h`` earlier calls are used.

    Attributes:
        timesteps: ``(n,)``, int64, float32 or float64; what the network is told.
        sigmas: ``(n,)``, ratio sigma / alpha of the noise in ``x`` before the call.
        input_scale: ``(n,)``.
        denoised: ``(n, 3)``, weights of this call's x, output, noise.
        base: ``(n, h + 1, 5)``, weights; axis 1 is the age of the call (0 is this one), axis 2
            is `Column`, in some samplers with `NEGATIVE`. Row ``[[1, 0, 0, 0, 0]]`` is "start
            from x".
        update: ``(n, h + 1, 5)``, likewise, for the next x.
        draws: ``(n,)`` bool, whether the row takes fresh noise from the source. A sampler may
            take noise that it then weighs with 0, to stay in step with others' draws.
        init_sigma: standard deviation of x before the first call, for a start from pure noise.
        limit: see `Limit`.
        noise_in_float32: draw noise in float32 rather than in the network's precision.
        log_variance: ``(n, 2)``, ``(n, 1)`` or None. With it, the network has twice the channels,
            and the second half (-1..1) mixes these two logarithms into the variance of the noise;
            with one of them, it is what multiplies the variance.
    """

    timesteps: Timesteps
    sigmas: Array
    input_scale: Array
    denoised: Array
    base: Array
    update: Array
    draws: NDArray[np.bool_]
    init_sigma: float = 1.0
    limit: Limit | None = None
    noise_in_float32: bool = False
    log_variance: Array | None = None

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def wants_negative(self) -> bool:
        """Whether it also weighs the picture of the negative prompt.

        An output then has twice the channels of x: the guided answer, then the one to the negative
        prompt. Without the latter the former stands for both, as if nothing was guided.
        """
        return self.update.shape[2] > NEGATIVE

    @property
    def depth(self) -> int:
        """How many earlier calls a row can look back at."""
        return self.update.shape[1] - 1

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def to_dict(self) -> dict[str, Any]:
        """Lists and numbers, ready for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}
        plain["timesteps_dtype"] = self.timesteps.dtype.name
        plain["limit"] = None if self.limit is None else vars(self.limit)
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: for a key that is missing or unknown.
        """
        known = {f.name for f in fields(cls)} | {"timesteps_dtype"}
        for key in values:
            if key not in known:
                raise ConfigError(f"A plan has no field '{key}'.{did_you_mean(key, known)}")
        if missing := known - set(values):
            raise ConfigError(f"The plan lacks {', '.join(sorted(missing))}.")
        arrays = {
            name: np.asarray(values[name], dtype=np.float64)
            for name in ("sigmas", "input_scale", "denoised", "base", "update")
        }
        check_choice("timesteps_dtype", values["timesteps_dtype"], ("int64", "float32", "float64"))
        log_variance, limit = values["log_variance"], values["limit"]
        return cls(
            timesteps=np.asarray(values["timesteps"], dtype=values["timesteps_dtype"]),
            draws=np.asarray(values["draws"], dtype=bool),
            init_sigma=float(values["init_sigma"]),
            noise_in_float32=bool(values["noise_in_float32"]),
            log_variance=None if log_variance is None else np.asarray(log_variance, dtype=float),
            limit=None if limit is None else Limit(**limit),
            **arrays,
        )
