"""Configurations of schedulers: the fields that all share, their checks, and swapping of classes.

Each scheduler has a `SchedulerConfig` subclass with exactly the constructor's arguments. What a
user sees as ``scheduler.config`` is a `FrozenDict` of it, with two additions that diffusers made
customary: keys that other classes had set (so that swapping there and back loses nothing), and
``_use_default_values``, the fields that nobody set (so that swapping takes the new class's default
and not the old one's).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar, Self, TypeVar

from sfumato.config import Config, check_choice, check_int
from sfumato.diffusion.plan import Limit
from sfumato.diffusion.schedule import BETA_SCHEDULES, SPACINGS, NoiseConfig
from sfumato.diffusion.ways import FINAL_SIGMAS, Ramp
from sfumato.errors import ConfigError, InputError

MAX_TRAIN_TIMESTEPS = 1_000_000

#: Far beyond what any model has seen (Stable Diffusion XL ends at 15, EDM at 80).
_LARGEST_SIGMA = 1e9

#: The smallest and the largest value of a setting that may make sense.
_RANGES = {
    "clip_sample_range": (1e-6, 1e6),
    "dynamic_thresholding_ratio": (1e-6, 1.0),
    "flow_shift": (1e-6, 1e6),
    "rho": (0.1, 1000.0),
    "sample_max_value": (1e-6, 1e6),
    "sigma_data": (1e-6, 1e6),
    "timestep_scaling": (1e-6, 1e6),
}

#: Settings that count timesteps, and the least value of each.
_COUNTS = {"original_inference_steps": 1, "steps_offset": 0}


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig(Config):
    """What every scheduler's settings are; the fields are in the subclasses."""

    predictions: ClassVar[tuple[str, ...]] = ("epsilon", "sample", "v_prediction")
    #: Fields with a closed set of values, besides those that this class checks itself.
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: Values of other classes' fields of the same name, and what they mean here.
    translations: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    #: Whether a last level of pure noise is pinned to a finite sigma.
    pin_last: ClassVar[bool] = False

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """From the constructor's keywords, all of them known; the given ones count as explicit."""
        values = dict(values)
        betas = values.get("trained_betas")
        if betas is not None:
            try:
                values["trained_betas"] = tuple(float(beta) for beta in betas)
            except (TypeError, ValueError):
                name = cls.__name__.removesuffix("Config")
                raise ConfigError(f"`{name}.trained_betas` has to be a list of numbers.") from None
        for name, words in cls.translations.items():
            if isinstance(values.get(name), str):
                values[name] = words.get(values[name], values[name])
        return cls(explicit=frozenset(values), **values)

    def validate(self) -> None:
        for field in fields(self):
            if field.name != "explicit":
                self._check_kind(field.name, field.default)
        name = type(self).__name__.removesuffix("Config")
        if "num_train_timesteps" in set(self):
            trained = self["num_train_timesteps"]
            check_int(f"{name}.num_train_timesteps", trained, 1, MAX_TRAIN_TIMESTEPS)
        closed = {
            "prediction_type": self.predictions,
            "beta_schedule": BETA_SCHEDULES,
            "timestep_spacing": SPACINGS,
            "final_sigmas_type": FINAL_SIGMAS,
            **self.choices,
        }
        for field, allowed in closed.items():
            if field in set(self):
                check_choice(f"{name}.{field}", self[field], allowed)
        for field, (low, high) in _RANGES.items():
            if field in set(self) and not low <= self[field] <= high:
                raise ConfigError(
                    f"`{name}.{field}` has to be from {low:g} to {high:g} but is"
                    f" {str(self[field])[:80]}."
                )
        for field, least in _COUNTS.items():
            if field in set(self):
                check_int(f"{name}.{field}", self[field], least, MAX_TRAIN_TIMESTEPS)
        ramp_of(self)
        ramps = [key for key in RAMPS if self.get(key)]
        if len(ramps) > 1:
            raise ConfigError(
                "Only one of `config.use_beta_sigmas`, `config.use_exponential_sigmas`,"
                f" `config.use_karras_sigmas` can be used, but {' and '.join(ramps)} are set."
            )

    def _check_kind(self, name: str, default: Any) -> None:
        """The value is of its default's kind: a switch, a whole number, a number or a word."""
        value = self[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(default, bool):
            fine, wanted = value is None or isinstance(value, bool), "True or False"
        elif isinstance(default, int):
            fine, wanted = isinstance(value, int) and is_number, "an integer"
        elif isinstance(default, float):
            finite = is_number and abs(value) < math.inf
            fine, wanted = finite or value == default, "a number"
        elif isinstance(default, str):
            fine, wanted = isinstance(value, str), "a string"
        else:
            return
        if not fine:
            owner = type(self).__name__.removesuffix("Config")
            raise ConfigError(f"`{owner}.{name}` has to be {wanted} but is {str(value)[:80]!r}.")

    @property
    def noise(self) -> NoiseConfig | None:
        """How noise was added in training, if the scheduler goes by timesteps of training."""
        return None

    @property
    def limit(self) -> Limit | None:
        """What happens to the denoised picture before it is used."""
        return None


@dataclass(frozen=True, kw_only=True)
class TrainedConfig(SchedulerConfig):
    """Fields of the schedulers that go by timesteps of training; `NoiseConfig` explains the first.

    Attributes:
        prediction_type: what the network predicts: ``epsilon``, ``sample`` or ``v_prediction``.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"

    def validate(self) -> None:
        super().validate()
        self._check_betas(type(self).__name__.removesuffix("Config"))

    def _check_betas(self, name: str) -> None:
        if self.trained_betas is not None:
            if len(self.trained_betas) != self.num_train_timesteps:
                raise ConfigError(
                    f"`{name}.trained_betas` has {len(self.trained_betas)} entries, but"
                    f" `num_train_timesteps` is {self.num_train_timesteps}."
                )
            if not all(0 < beta < 1 for beta in self.trained_betas):
                raise ConfigError(f"`{name}.trained_betas` has to lie between 0 and 1.")
        elif not 0 < self.beta_start <= self.beta_end < 1:
            raise ConfigError(
                f"`{name}` needs 0 < beta_start <= beta_end < 1, but they are"
                f" {self.beta_start} and {self.beta_end}."
            )

    @property
    def noise(self) -> NoiseConfig:
        """How noise was added in training."""
        return NoiseConfig(
            self.num_train_timesteps,
            self.beta_start,
            self.beta_end,
            self.beta_schedule,
            self.trained_betas,
            bool(self.get("rescale_betas_zero_snr")),
            self.pin_last,
        )


def dynamic_limit(config: Mapping[str, Any]) -> Limit | None:
    """Dynamic thresholding, if it is on."""
    if not config["thresholding"]:
        return None
    return Limit(
        quantile=config["dynamic_thresholding_ratio"], maximum=max(config["sample_max_value"], 1.0)
    )


#: The switches of `ways.Ramp`, and its kinds.
RAMPS: Mapping[str, str] = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}


def ramp_of(config: Mapping[str, Any]) -> Ramp:
    """The ramp that a configuration asks for, with its ends if it sets them.

    Raises:
        ConfigError: when an end is no positive number, or the lower one is above the upper.
    """
    kinds = [kind for switch, kind in RAMPS.items() if config.get(switch)]
    ends = config.get("sigma_min"), config.get("sigma_max")
    for name, end in zip(("sigma_min", "sigma_max"), ends, strict=True):
        number = isinstance(end, int | float) and not isinstance(end, bool)
        if end is not None and not (number and 0 < end < _LARGEST_SIGMA):
            raise ConfigError(f"`{name}` has to be a positive number but is {str(end)[:80]!r}.")
    low, high = ends
    if low is not None and high is not None and low >= high:
        raise ConfigError(f"`sigma_min` ({low:g}) has to be below `sigma_max` ({high:g}).")
    return Ramp(kinds[0] if kinds else None, low, high)


# --- Arguments of set_timesteps ---------------------------------------------------------------


def checked_steps(value: object, train_steps: int) -> int:
    """The number of steps as ``int``.

    Raises:
        InputError: unless it is a whole number from 1 to the number of training timesteps.
    """
    try:
        steps = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        steps = 0
    if isinstance(value, bool) or steps < 1:
        raise InputError(
            f"`num_inference_steps` has to be an integer of at least 1 but is {value!r}."
        )
    if steps > train_steps:
        raise InputError(
            f"`num_inference_steps`: {steps} cannot be larger than `self.config.train_timesteps`:"
            f" {train_steps} as the unet model trained with this scheduler can only handle"
            f" maximal {train_steps} timesteps."
        )
    return steps


Number = TypeVar("Number", int, float)


def checked_timesteps(values: Sequence[Number], train_steps: int) -> list[Number]:
    """The user's own timesteps.

    Raises:
        InputError: unless they fall, from below the number of training timesteps to 0 or more.
    """
    listed = [getattr(value, "item", lambda v=value: v)() for value in values]
    if not listed:
        raise InputError("`timesteps` is empty.", hint="Give at least one timestep.")
    for value in listed:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise InputError(f"`timesteps` holds {value!r}; 0 or a larger number is needed.")
    if any(later >= earlier for earlier, later in pairwise(listed)):
        raise InputError(
            "`custom_timesteps` must be in descending order.", hint="No timestep may come twice."
        )
    if listed[0] >= train_steps:
        raise InputError(
            f"`timesteps` must start before `self.config.train_timesteps`: {train_steps}."
        )
    return listed


def exactly_one(**given: object) -> None:
    """Raise `InputError` unless exactly one of the arguments is not None."""
    names = [f"`{name}`" for name in given]
    count = sum(value is not None for value in given.values())
    if count == 0:
        raise InputError(f"Must pass exactly one of {' or '.join(names)}.")
    if count > 1:
        raise InputError(f"Can only pass one of {' or '.join(names)}.")


def no_custom_timesteps(config: Mapping[str, Any], *switches: str) -> None:
    """Raise `InputError` if a switch is on that leaves no room for the user's own timesteps."""
    for switch in switches:
        if config.get(switch):
            raise InputError(f"Cannot set `timesteps` with `config.{switch} = True`.")
