"""Schedulers as JAX wants them: pure functions of a state, under diffusers' Flax names.

A scheduler here is a configuration; what changes is in a `SchedulerState`, a pytree that can pass
through ``jit`` and ``scan``. The arithmetic is that of the torch-free tables (see
`sfumato.diffusion.plan`), so every scheduler class that makes a plan has its functional form, and
`functional` makes it; the names that diffusers had are below.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from sfumato import schedulers
from sfumato.diffusion.plan import Limit, Plan
from sfumato.errors import InputError
from sfumato.jax.sampling import Progress, Rows, advance, begin, rows_of
from sfumato.outputs import BaseOutput
from sfumato.pipelines.number_checks import finite_number, whole_number


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("alphas_cumprod", "timesteps", "init_noise_sigma", "rows", "row", "past"),
    meta_fields=("num_inference_steps", "limit"),
)
@dataclass(frozen=True)
class SchedulerState:
    """What a scheduler knows of a run.

    Attributes:
        alphas_cumprod: of the training steps, float32.
        timesteps: what the network is told, call by call; empty before ``set_timesteps``.
        init_noise_sigma: standard deviation of the noise to start from.
        rows: the sampler's table, None before ``set_timesteps``.
        row: number of the next row, -1 before the first.
        past: tensors of earlier calls, None before the first ``step``.
        num_inference_steps: how many steps, None before ``set_timesteps``.
        limit: what happens to denoised pictures.
    """

    alphas_cumprod: Array
    timesteps: Array
    init_noise_sigma: Array
    rows: Rows | None = None
    row: Any = -1
    past: Array | None = None
    num_inference_steps: int | None = None
    limit: Limit | None = None

    @property
    def common(self) -> Self:
        """The state itself: diffusers' states had ``alphas_cumprod`` one level below."""
        return self

    def replace(self, **changes: Any) -> Self:
        """A copy with other fields."""
        return replace(self, **changes)


@dataclass
class FlaxSchedulerOutput(BaseOutput):
    """What ``step`` returns: the next sample, and the state after it."""

    prev_sample: Array
    state: SchedulerState


class FlaxScheduler:
    """Base of the functional schedulers.

    Args:
        dtype: of samples; accepted for the sake of old code, sums are float32.
        config: settings, as of the scheduler class of the same name without ``Flax``.
    """

    #: The class whose settings and tables these are.
    inner_class: ClassVar[type[Any]]

    def __init__(self, dtype: Any = jnp.float32, **config: Any) -> None:
        self.dtype = dtype
        self._inner = self.inner_class(**config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **kwargs: Any) -> Self:
        """A scheduler with another's settings; see `sfumato.schedulers.base.Scheduler`."""
        dtype = kwargs.pop("dtype", jnp.float32)
        return cls.of(cls.inner_class.from_config(config, **kwargs), dtype)

    @classmethod
    def of(cls, inner: Any, dtype: Any = jnp.float32) -> Self:
        """The functional form of a scheduler as it is, with what was set later than its making."""
        scheduler = cls.__new__(cls)
        scheduler.dtype, scheduler._inner = dtype, copy(inner)
        return scheduler

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> tuple[Self, SchedulerState]:
        """A scheduler and its first state, from a folder with a ``scheduler_config.json``."""
        inner = cls.inner_class.from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        scheduler = cls.of(inner)
        return scheduler, scheduler.create_state()

    @property
    def config(self) -> Any:
        """The settings."""
        return self._inner.config

    def register_to_config(self, **changes: Any) -> None:
        """Change settings; states of runs under way keep theirs."""
        self._inner.register_to_config(**changes)

    def save_pretrained(self, save_directory: str | PathLike[str]) -> None:
        """Write ``scheduler_config.json``, which the torch class reads too."""
        self._inner.save_pretrained(save_directory)

    def create_state(self, common: Any = None) -> SchedulerState:
        """The state before any run; ``common`` is accepted for the sake of old code."""
        table = getattr(self._inner, "_acp", np.zeros(0))
        return SchedulerState(
            alphas_cumprod=jnp.asarray(table, jnp.float32),
            timesteps=jnp.zeros(0, jnp.float32),
            init_noise_sigma=jnp.float32(1.0),
        )

    @property
    def order(self) -> int:
        """Calls of the network per step."""
        return self._inner.order

    def plan(self, num_inference_steps: int, start: int = 0, *, eta: float = 0.0) -> Plan:
        """The table of a run.

        Args:
            num_inference_steps: how many steps.
            start: the first of the timesteps to pass through.
            eta: share of fresh noise, 0..1, where the scheduler takes one.

        Raises:
            InputError: a number out of range.
        """
        inner = copy(self._inner)  # states are never shared
        whole_number("num_inference_steps", num_inference_steps, 1, len(inner))
        eta = finite_number("eta", eta, 0, 1)
        inner.set_timesteps(num_inference_steps)
        takes = "eta" in inspect.signature(inner.step).parameters
        return inner.plan(start, eta=eta) if takes else inner.plan(start)

    def set_timesteps(
        self,
        state: SchedulerState,
        num_inference_steps: int,
        shape: tuple[int, ...] = (),
        *,
        eta: float = 0.0,
    ) -> SchedulerState:
        """The state of a run about to begin.

        Args:
            state: from `create_state`.
            num_inference_steps: how many steps.
            shape: of the samples; not needed.
            eta: see `plan`.
        """
        plan = self.plan(num_inference_steps, eta=eta)
        rows = rows_of(plan)
        return state.replace(
            timesteps=jnp.asarray(plan.timesteps),
            init_noise_sigma=jnp.float32(plan.init_sigma),
            rows=rows,
            row=jnp.int32(-1),
            past=None if not shape else begin(jnp.zeros(shape), rows).past,
            num_inference_steps=num_inference_steps,
            limit=plan.limit,
        )

    def scale_model_input(
        self, state: SchedulerState, sample: Array, timestep: Any = None
    ) -> Array:
        """What the network is to see for ``sample`` in the next step."""
        return sample * _rows(state).input_scale[self._row(state, timestep)]

    def step(
        self,
        state: SchedulerState,
        model_output: Array,
        timestep: Any,
        sample: Array,
        return_dict: bool = True,
        *,
        key: Array | None = None,
    ) -> FlaxSchedulerOutput | tuple[Array, SchedulerState]:
        """The next step.

        Args:
            state: of the run; the first call may begin at any of its timesteps.
            model_output: the network's answer.
            timestep: at which it was asked.
            sample: what it was asked about, before `scale_model_input`.
            return_dict: return an output object rather than a tuple.
            key: for samplers that draw noise; without one they draw from a key of their own.

        Raises:
            InputError: there are no timesteps, or not this one, or the last step was taken.
        """
        return self._advance(state, model_output, timestep, sample, key, return_dict)

    def _advance(
        self,
        state: SchedulerState,
        output: Array,
        timestep: Any,
        sample: Array,
        key: Array | None,
        return_dict: bool,
    ) -> FlaxSchedulerOutput | tuple[Array, SchedulerState]:
        rows, at = _rows(state), self._row(state, timestep)
        x = sample.astype(jnp.float32)
        past = begin(x, rows).past if state.past is None else state.past
        key = jax.random.PRNGKey(0) if key is None else key
        row = jax.tree.map(lambda column: column[at], rows)
        noise = jax.random.normal(jax.random.fold_in(key, at), x.shape) * row.draws
        progress, _ = advance(row, Progress(x, past), output, noise, state.limit)
        new = state.replace(row=at + 1, past=progress.past)
        result = progress.x.astype(sample.dtype)
        return FlaxSchedulerOutput(result, new) if return_dict else (result, new)

    def add_noise(
        self, state: SchedulerState, original_samples: Array, noise: Array, timesteps: Array
    ) -> Array:
        """Noise pictures as in training, each at its own whole timestep ``(n,)``."""
        alpha, sigma = _levels(state, original_samples, timesteps)
        return alpha * original_samples + sigma * noise

    def get_velocity(
        self, state: SchedulerState, sample: Array, noise: Array, timesteps: Array
    ) -> Array:
        """What a ``v_prediction`` network should answer: ``alpha * noise - sigma * sample``."""
        alpha, sigma = _levels(state, sample, timesteps)
        return alpha * noise - sigma * sample

    def _row(self, state: SchedulerState, timestep: Any) -> Array:
        """The number of the next row; at the first call, that of ``timestep``."""
        if timestep is None:
            return jnp.maximum(state.row, 0)
        found = state.timesteps == jnp.asarray(timestep, state.timesteps.dtype)
        first = jnp.argmax(found)
        # Of two alike the second, unless the first leads the list: see `Scheduler._index`.
        second = jnp.argmax(found & (jnp.arange(found.size) > first))
        first = jnp.where((found.sum() > 1) & (first > 0), second, first)
        at = jnp.where(jnp.asarray(state.row) < 0, first, state.row)
        if not isinstance(at, Tracer):  # while compiling, nobody knows
            if at >= found.size:
                raise InputError(
                    "The last step was taken.", hint="state = scheduler.set_timesteps(state, steps)"
                )
            if int(state.row) < 0 and not found.any():
                raise InputError(
                    f"{float(timestep):g} is not one of the scheduler's timesteps.",
                    hint="Pass one of `state.timesteps`.",
                )
        return at

    def __len__(self) -> int:
        return len(self._inner)


def _rows(state: SchedulerState) -> Rows:
    if state.rows is None:
        raise InputError(
            "The state has no timesteps.", hint="state = scheduler.set_timesteps(state, steps)"
        )
    return state.rows


def _levels(state: SchedulerState, like: Array, timesteps: Array) -> tuple[Array, Array]:
    """alpha and sigma at whole timesteps, shaped to be multiplied with ``like``."""
    share = state.alphas_cumprod[jnp.asarray(timesteps, jnp.int32)]
    share = share.reshape(-1, *[1] * (like.ndim - 1))
    return jnp.sqrt(share), jnp.sqrt(1 - share)


def functional(inner_class: type[Any]) -> type[FlaxScheduler]:
    """The functional form of a scheduler class, under its name after ``Flax``."""
    name = f"Flax{inner_class.__name__}"
    known = globals().get(name)
    if known is not None:
        return known
    return type(name, (FlaxScheduler,), {"inner_class": inner_class, "__doc__": _ABOUT})


_ABOUT = "The functional form of the class of the same name without ``Flax``."


class FlaxDDIMScheduler(FlaxScheduler):
    """`DDIMScheduler`, functional."""

    inner_class = schedulers.DDIMScheduler

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        state: SchedulerState,
        model_output: Array,
        timestep: Any,
        sample: Array,
        eta: float = 0.0,
        return_dict: bool = True,
        *,
        key: Array | None = None,
    ) -> FlaxSchedulerOutput | tuple[Array, SchedulerState]:
        """The next step; ``eta`` is the share of fresh noise, see `FlaxScheduler.step`."""
        if eta and state.num_inference_steps is not None:
            state = state.replace(rows=rows_of(self.plan(state.num_inference_steps, eta=eta)))
        return self._advance(state, model_output, timestep, sample, key, return_dict)


class FlaxDDPMScheduler(FlaxScheduler):
    """`DDPMScheduler`, functional."""

    inner_class = schedulers.DDPMScheduler

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        state: SchedulerState,
        model_output: Array,
        timestep: Any,
        sample: Array,
        key: Array | None = None,
        return_dict: bool = True,
    ) -> FlaxSchedulerOutput | tuple[Array, SchedulerState]:
        """The next step; see `FlaxScheduler.step`."""
        return self._advance(state, model_output, timestep, sample, key, return_dict)


class FlaxPNDMScheduler(FlaxScheduler):
    """`PNDMScheduler`, functional."""

    inner_class = schedulers.PNDMScheduler


class FlaxLMSDiscreteScheduler(FlaxScheduler):
    """`LMSDiscreteScheduler`, functional."""

    inner_class = schedulers.LMSDiscreteScheduler


class FlaxDPMSolverMultistepScheduler(FlaxScheduler):
    """`DPMSolverMultistepScheduler`, functional."""

    inner_class = schedulers.DPMSolverMultistepScheduler


class FlaxEulerDiscreteScheduler(FlaxScheduler):
    """`EulerDiscreteScheduler`, functional."""

    inner_class = schedulers.EulerDiscreteScheduler
