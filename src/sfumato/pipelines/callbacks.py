"""Callbacks for the end of a step: classes that bundle what they do with the tensors they need.

Any callable ``(pipeline, step, timestep, tensors) -> tensors`` serves as
``callback_on_step_end``. These classes save naming the tensors in a second argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfumato.config import Config
from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CutoffConfig(Config):
    """When a callback acts: after a share of the steps, or at a step; exactly one is set."""

    cutoff_step_ratio: float | None = 1.0
    cutoff_step_index: int | None = None

    def validate(self) -> None:
        ratio = self.cutoff_step_ratio
        if (ratio is None) == (self.cutoff_step_index is None):
            raise ConfigError(
                "Either cutoff_step_ratio or cutoff_step_index should be provided, not both or"
                " none."
            )
        if ratio is not None and (not isinstance(ratio, float) or not 0.0 <= ratio <= 1.0):
            raise ConfigError("cutoff_step_ratio must be a float between 0.0 and 1.0.")


class PipelineCallback:
    """Base of callbacks that act from a given step on.

    A subclass lists the tensors it reads in ``tensor_inputs`` and overrides `callback_fn`.

    Args:
        cutoff_step_ratio: the share of the steps after which to act, 0..1.
        cutoff_step_index: or the step itself; set the ratio to None then.

    Raises:
        ConfigError: when both or neither are given, or the ratio is out of range.
    """

    tensor_inputs: Sequence[str] = ()

    def __init__(
        self, cutoff_step_ratio: float | None = 1.0, cutoff_step_index: int | None = None
    ) -> None:
        self.config = CutoffConfig(
            cutoff_step_ratio=cutoff_step_ratio, cutoff_step_index=cutoff_step_index
        )

    def cutoff_step(self, num_timesteps: int) -> int:
        """The step at which to act, of a run that has ``num_timesteps``."""
        if self.config.cutoff_step_index is not None:
            return self.config.cutoff_step_index
        return math.floor(num_timesteps * (self.config.cutoff_step_ratio or 0.0))

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """What to do at the end of a step; returns the tensors to go on with."""
        raise NotImplementedError(f"{type(self).__name__} has to implement `callback_fn`.")

    def __call__(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return self.callback_fn(pipeline, step_index, timestep, callback_kwargs)


class MultiPipelineCallbacks:
    """Several callbacks as one: each gets the tensors that the one before returned."""

    def __init__(self, callbacks: Sequence[PipelineCallback]) -> None:
        self.callbacks = list(callbacks)

    @property
    def tensor_inputs(self) -> list[str]:
        """All tensors that any of the callbacks reads."""
        return [name for callback in self.callbacks for name in callback.tensor_inputs]

    def __call__(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        for callback in self.callbacks:
            callback_kwargs = callback(pipeline, step_index, timestep, callback_kwargs)
        return callback_kwargs


class IPAdapterScaleCutoffCallback(PipelineCallback):
    """Lets pictures act no longer from the cutoff step on; their scale stays 0 after the call."""

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if step_index == self.cutoff_step(pipeline.num_timesteps):
            pipeline.set_ip_adapter_scale(0.0)
        return callback_kwargs


class SDCFGCutoffCallback(PipelineCallback):
    """Ends classifier-free guidance at the cutoff step, which halves the cost of later steps."""

    tensor_inputs = ("prompt_embeds",)

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        guided = pipeline.do_classifier_free_guidance
        if guided and step_index == self.cutoff_step(pipeline.num_timesteps):
            pipeline._guidance_scale = 0.0  # without which the negative prompt is left out
        return callback_kwargs
