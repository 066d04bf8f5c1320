"""What happens at the end of each step besides arithmetic: callbacks and the progress bar."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sfumato.diffusion.denoise import Step
from sfumato.diffusion.levels import Levels
from sfumato.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.diffusion.run import Solver
    from sfumato.pipelines.flow import Drawing

#: Callbacks of the older kind: ``callback(step, timestep, latents)`` every few steps.
LEGACY_KEYWORDS = ("callback", "callback_steps")
#: What callbacks may ask for besides what the pipeline's class lists, in every pipeline.
DENOISED = "denoised"


def warn_of_legacy(given: Mapping[str, Any]) -> None:
    """Warn that the older kind of callback is deprecated, when it is used."""
    for name in LEGACY_KEYWORDS:
        if given.get(name) is not None:
            warnings.warn(
                f"Passing `{name}` as an input argument to `__call__` is deprecated, consider"
                " using `callback_on_step_end`",
                FutureWarning,
                stacklevel=4,
            )


class Watcher:
    """Calls a user's functions with a finished step, and takes their changes back.

    The pipeline's progress bar advances once per step asked for.

    Args:
        drawing: the call: its request says what to call, its tensors what to show.
        solver: how often the network is called in all; of one that grows nobody knows, and the
            bar, which then counts calls, has no end.
    """

    def __init__(self, drawing: Drawing, solver: Solver) -> None:
        self._drawing, self._solver = drawing, solver
        self._request = drawing.request
        adaptive, bar = getattr(drawing.scheduler, "adaptive", False), drawing.pipeline.progress_bar
        self._bar = bar(itertools.count()) if adaptive else bar(total=drawing.steps)
        self._levels: Levels | None = None
        self._order = getattr(drawing.scheduler, "order", 1)
        self._warmup = 0 if adaptive else len(solver) - drawing.steps * self._order

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, step: Step) -> None:
        """Show a step to the callbacks; their changes are written into it."""
        request = self._request
        if request.callback_on_step_end is not None:
            self._call_on_step_end(step, request.callback_on_step_end)
        done = step.index + 1
        last = done == len(self._solver)
        if last or (done > self._warmup and done % self._order == 0):
            self._bar.update()
            if request.callback is not None and step.index % (request.callback_steps or 1) == 0:
                request.callback(step.index // self._order, step.timestep, step.x)

    def _call_on_step_end(self, step: Step, on_step_end: Callable[..., Any]) -> None:
        tensors = self._drawing.tensors
        known = {"latents": step.x, "prompt_embeds": step.context, **tensors}
        if DENOISED in self._request.callback_on_step_end_tensor_inputs:
            known[DENOISED] = self._denoised(step)
        given = {name: known[name] for name in self._request.callback_on_step_end_tensor_inputs}
        changed = on_step_end(self._drawing.pipeline, step.index, step.timestep, given)
        if changed is None:
            return
        if not isinstance(changed, Mapping):
            raise InputError(
                "`callback_on_step_end` has to return a dict of tensors, or None for no change,"
                f" but returned {type(changed)}."
            )
        step.x = changed.get("latents", step.x)
        step.context = changed.get("prompt_embeds", step.context)
        tensors.update({name: changed[name] for name in tensors if name in changed})

    def _denoised(self, step: Step) -> Tensor:
        """The finished latents as the network sees them now."""
        if step.denoised is not None:
            return step.denoised
        if self._levels is None:
            self._levels = Levels.of(self._drawing.scheduler, self._drawing.timesteps)
        return self._levels.to_picture(step.seen, step.output, float(step.timestep))
