"""Compiled code in memory, and the weights that it reads: `Code`."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._aoti import AOTIModelPackageLoader as _Loader
from torch.utils import _pytree as pytree

from sfumato.checkpoints.files import shown
from sfumato.errors import SfumatoError
from sfumato.runtime.compiled_build import WITHIN, first_line


class Code:
    """A part of a network for one set of shapes.

    It knows addresses of weights and keeps none in memory, so that weights which a network gives up
    are gone.

    Args:
        path: of the compiled file; not needed any more afterwards.
        state: the network's tensors by name.
        read: names of those that the code has to read, if that is to be checked.

    Raises:
        SfumatoError: the file cannot be loaded, needs tensors that are not there, or has numbers of
            its own in the place of some.
    """

    def __init__(
        self, path: Path, state: Mapping[str, Tensor], read: frozenset[str] = frozenset()
    ) -> None:
        try:
            # Not `torch._inductor.aoti_load_package`, which calls the C++ compiler to tell in its
            # log what the processor can do; the key of the file has that.
            self._code = _Loader(str(path), "model", False, 1, -1)
            self._names = [name.removeprefix(WITHIN) for name in self._code.get_constant_fqns()]
        except Exception as error:  # whatever torch raises of a file that it cannot take
            raise SfumatoError(f"{shown(path)} cannot be loaded ({first_line(error)}).") from error
        for name in self._names:
            if name not in state:
                raise SfumatoError(f"The network holds numbers besides its weights ({name}).")
        fixed = sorted(read.difference(self._names))
        if fixed:
            raise SfumatoError(f"The compiler has put numbers of {fixed[0]} into the code.")
        self._lock = threading.Lock()
        self._addresses: dict[str, int] = {}

    def __call__(self, inputs: Mapping[str, Any], state: Mapping[str, Tensor]) -> Tensor:
        """Compute with the weights as they are now; one thread at a time."""
        # These keep them in memory, should another thread change the network meanwhile.
        weights = {name: state[name].detach() for name in self._names}
        with self._lock:
            self._point_to(weights)
            return self._code.boxed_run(pytree.tree_leaves(inputs))[0]

    def _point_to(self, weights: Mapping[str, Tensor]) -> None:
        """Let the code read the weights where they are."""
        addresses = {name: tensor.data_ptr() for name, tensor in weights.items()}
        moved = [name for name in self._names if addresses[name] != self._addresses.get(name)]
        if moved:
            views = {WITHIN + name: _view(weights[name]) for name in moved}
            full = len(moved) == len(self._names)
            self._code.load_constants(
                views, use_inactive=False, check_full_update=full, user_managed=True
            )
            self._addresses = addresses


def _view(tensor: Tensor) -> Tensor:
    """The same numbers in a tensor that does not keep them in memory.

    Compiled code never lets go of what it was given.
    """
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    count = 1 + sum((size - 1) * stride for size, stride in steps)
    memory = (ctypes.c_char * (count * tensor.element_size())).from_address(tensor.data_ptr())
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=count)
    return flat.as_strided(tensor.shape, tensor.stride())
