"""How much memory tensors take while a function runs: a count, which no other program disturbs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Memory(TorchDispatchMode):
    """Counts the bytes of all tensors in main memory that torch makes here and that live.

    Attributes:
        now: of those that live.
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, list | tuple) else [result]:
            if isinstance(made, Tensor) and made.device.type == "cpu":
                self._note(made.untyped_storage())
        return result

    def _note(self, storage: Any) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if not size or place in self._seen:
            return

        def gone(_: Any) -> None:
            self.now -= size
            del self._seen[place]

        self._seen[place] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def peak(run: Callable[[], Any]) -> int:
    """The most bytes of tensors that a function makes and that live at a time."""
    with Memory() as memory:
        run()
    return memory.peak
