"""The compiled kernels in torch's place, for as long as a network computes.

`active` puts itself before torch's own functions in this thread: linear layers, convolutions,
attention and norms in main memory are computed by `sfumato.native` where that is faster, and
everything else, as well as everything with gradients, goes on to torch. Networks enter it
themselves. A package without the compiled library works alike, only slower; so it does with
``SFUMATO_KERNELS=none`` in the environment, or inside ``using(False)``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _len_torch_function_stack
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode

from sfumato.native.library import describe as describe
from sfumato.native.library import features, switched_off
from sfumato.runtime.attention import fast_attention
from sfumato.runtime.blocked_attention import can_block
from sfumato.runtime.layer_kernels import convolve, linear
from sfumato.runtime.pointwise import group_norm, layer_norm

#: What answers in place of torch's functions; None as an answer hands the call on.
_STAND_INS: Mapping[Any, Callable[..., Tensor | None]] = {
    F.linear: linear,
    torch.conv2d: convolve,
    F.scaled_dot_product_attention: fast_attention,
    F.group_norm: group_norm,
    F.layer_norm: layer_norm,
}


class _Choice(threading.local):
    on = True
    entered = False


_choice = _Choice()


def available() -> bool:
    """Whether this process has kernels for its processor."""
    return features() != 0


@contextmanager
def using(on: bool) -> Iterator[None]:
    """Let networks that are called in this thread use the kernels, or not."""
    before = _choice.on
    _choice.on = on
    try:
        yield
    finally:
        _choice.on = before


def active() -> AbstractContextManager[object]:
    """Compute with the kernels inside, if anything there can use them.

    Where they could not be built, attention may still gain by `sfumato.runtime.blocked_attention`.
    """
    return _Kernels() if _wanted() else nullcontext()


def computing() -> bool:
    """Whether this thread is inside `active`, and that uses the kernels."""
    return _choice.entered


def _wanted() -> bool:
    return (
        (available() or (can_block() and not switched_off()))
        and _choice.on
        and not _choice.entered
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
    )


def _pop_all() -> list[Any]:
    """Take all modes from the stack; the innermost comes first."""
    return [_pop_mode() for _ in range(_len_torch_function_stack())]


def _push_all(modes: Sequence[Any]) -> None:
    for mode in reversed(modes):
        _push_mode(mode)


class _Kernels(TorchFunctionMode):
    """The last of the modes to be asked, so that the others (`seamless`) still see every call."""

    def __enter__(self) -> _Kernels:
        others = _pop_all()
        super().__enter__()
        _push_all(others)
        _choice.entered = True
        return self

    def __exit__(self, *exception: Any) -> None:
        _choice.entered = False
        *others, _ = _pop_all()
        _push_all(others)

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        stand_in = _STAND_INS.get(func)
        if stand_in is not None and not torch._C._are_functorch_transforms_active():
            result = stand_in(*args, **(kwargs or {}))
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))
