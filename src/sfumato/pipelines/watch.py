"""What happens at the end of each step besides arithmetic: callbacks and the progress bar."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from sfumato.diffusion.denoise import Step
from sfumato.errors import InputError

#: Callbacks of the older kind: ``callback(step, timestep, latents)`` every few steps.
LEGACY_KEYWORDS = ("callback", "callback_steps")


def warn_of_legacy(given: Mapping[str, Any]) -> None:
    """Warn that the older kind of callback is deprecated, when it is used."""
    for name in LEGACY_KEYWORDS:
        if given.get(name) is not None:
            warnings.warn(
                f"Passing `{name}` as an input argument to `__call__` is deprecated, consider"
                " using `callback_on_step_end`",
                FutureWarning,
                stacklevel=3,
            )


class Watcher:
    """Calls a user's functions with a finished step, and takes their changes back.

    Args:
        pipeline: handed to the callback; its progress bar advances once per step asked for.
        count: how often the network is called in all.
        steps: how many steps the user asked for.
        order: calls of the network per step.
        on_step_end: ``(pipeline, step, timestep, tensors) -> tensors or None``.
        tensor_inputs: the names of the tensors that it gets.
        negative: embeddings of the negative prompts, for callbacks that ask for them.
        callback: older kind, ``(step, timestep, latents)``.
        callback_steps: how often the older kind is called.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        count: int,
        steps: int,
        order: int,
        on_step_end: Callable[..., Any] | None = None,
        tensor_inputs: Sequence[str] = ("latents",),
        negative: Tensor | None = None,
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._bar = pipeline.progress_bar(total=steps)
        self._count = count
        self._warmup = count - steps * order
        self._order = order
        self._on_step_end = on_step_end
        self._tensor_inputs = tensor_inputs
        self._negative = negative
        self._callback = callback
        self._callback_steps = callback_steps or 1

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, step: Step) -> None:
        """Show a step to the callbacks; their changes are written into it."""
        if self._on_step_end is not None:
            self._call_on_step_end(step, self._on_step_end)
        done = step.index + 1
        last = done == self._count
        if last or (done > self._warmup and done % self._order == 0):
            self._bar.update()
            if self._callback is not None and step.index % self._callback_steps == 0:
                self._callback(step.index // self._order, step.timestep, step.x)

    def _call_on_step_end(self, step: Step, on_step_end: Callable[..., Any]) -> None:
        known = {
            "latents": step.x,
            "prompt_embeds": step.context,
            "negative_prompt_embeds": self._negative,
        }
        given = {name: known[name] for name in self._tensor_inputs}
        changed = on_step_end(self._pipeline, step.index, step.timestep, given)
        if changed is None:
            return
        if not isinstance(changed, Mapping):
            raise InputError(
                "`callback_on_step_end` has to return a dict of tensors, or None for no change,"
                f" but returned {type(changed)}."
            )
        step.x = changed.get("latents", step.x)
        step.context = changed.get("prompt_embeds", step.context)
        self._negative = changed.get("negative_prompt_embeds", self._negative)
