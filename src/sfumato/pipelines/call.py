"""What one call of a pipeline knows, kept apart from the pipeline itself.

A pipeline may run in several threads at once, and a callback may call the pipeline that is
running it. So the settings that callbacks read and change (``pipe.guidance_scale``,
``pipe._interrupt``) live in a `CallState` of that one call; the pipeline's attributes are views of
the call that the reading thread is in.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class CallState:
    """Settings of one call that a callback may read, and mostly change.

    Attributes:
        guidance_scale: how far to go from the negative prompt towards the prompt.
        guidance_rescale: how much of the contrast lost to guidance to restore, 0..1.
        image_guidance_scale: how far to go towards a picture that is being edited.
        clip_skip: layers of the text encoder left out at its end.
        cross_attention_kwargs: handed to the UNet in every step.
        num_timesteps: evaluations of the UNet planned.
        interrupt: set to True to stop after the current step and decode what is there.
    """

    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    image_guidance_scale: float = 1.5
    clip_skip: int | None = None
    cross_attention_kwargs: dict[str, Any] | None = None
    num_timesteps: int = 0
    interrupt: bool = False


class Calls:
    """The calls of one pipeline that are running, and the last one that began."""

    def __init__(self) -> None:
        self._running: dict[int, list[CallState]] = {}
        self._last = CallState()

    @contextmanager
    def begin(self, state: CallState) -> Iterator[CallState]:
        """Make ``state`` the current call of this thread until the block ends, however it ends."""
        thread = threading.get_ident()
        stack = self._running.setdefault(thread, [])
        stack.append(state)
        self._last = state
        try:
            yield state
        finally:
            stack.pop()
            if not stack:
                del self._running[thread]

    @property
    def current(self) -> CallState:
        """This thread's innermost call; outside of any, the last call that began."""
        stack = self._running.get(threading.get_ident())
        return stack[-1] if stack else self._last

    def set(self, name: str, value: Any) -> None:
        """Change this thread's call; from a thread that runs none, all running calls.

        The latter is how a button in a window stops a picture: ``pipe._interrupt = True``.
        """
        stack = self._running.get(threading.get_ident())
        states = [stack[-1]] if stack else [s for own in list(self._running.values()) for s in own]
        for state in states or [self._last]:
            setattr(state, name, value)

    def __reduce__(self) -> tuple[type[Calls], tuple[()]]:
        """A copied or unpickled pipeline runs nothing yet."""
        return Calls, ()


class OfCall:
    """A pipeline attribute that views the current call's setting of the same name.

    ``_guidance_scale = OfCall()`` can be assigned, ``guidance_scale = OfCall()`` only read, as
    users of diffusers know them.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name.removeprefix("_")
        self._writable = name.startswith("_")

    def __get__(self, pipeline: Any, owner: type | None = None) -> Any:
        return self if pipeline is None else getattr(pipeline._calls.current, self._name)

    def __set__(self, pipeline: Any, value: Any) -> None:
        if not self._writable:
            raise AttributeError(f"`{self._name}` is given with each call, or set in a callback.")
        pipeline._calls.set(self._name, value)
