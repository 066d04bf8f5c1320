"""Pictures that tile: convolutions that continue on the opposite edge.

This is a context of the running thread and no change of the networks, so nothing of it is left
behind, and other threads draw with the same networks as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sfumato.errors import InputError

#: Value of ``tiling`` to the axes that join: across, and down.
AXES = {False: (False, False), True: (True, True), "x": (True, False), "y": (False, True)}


class _Circular(TorchFunctionMode):
    """Pads two-dimensional convolutions with the opposite edge, along one axis or both."""

    def __init__(self, across: bool, down: bool) -> None:
        super().__init__()
        self._across, self._down = across, down

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.conv2d:
            return self._convolved(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _convolved(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if not isinstance(padding, str):
            down, across = (padding, padding) if isinstance(padding, int) else padding
            wrapped = (across, across) if self._across else (0, 0)
            wrapped += (down, down) if self._down else (0, 0)
            if any(wrapped):
                input = functional.pad(input, wrapped, mode="circular")
                padding = (0 if self._down else down, 0 if self._across else across)
        return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)


@contextmanager
def seamless(tiling: bool | str | None) -> Iterator[None]:
    """Draw what can be laid side by side without a seam, while the block runs.

    Args:
        tiling: True for both directions, ``"x"`` for side by side, ``"y"`` for one above the
            other; None and False change nothing.

    Raises:
        InputError: it is something else.
    """
    across, down = read_tiling(tiling)
    if not across and not down:
        yield
        return
    with _Circular(across, down):
        yield


def read_tiling(tiling: bool | str | None) -> tuple[bool, bool]:
    """Whether pictures join across, and down; `InputError` for an unknown value."""
    if tiling is None:
        return False, False
    if not isinstance(tiling, bool | str) or tiling not in AXES:
        raise InputError(f"`tiling` has to be True, False, 'x' or 'y' but is {str(tiling)[:40]}.")
    return AXES[tiling]
