"""Numbers of a scheduler, which become torch tensors when somebody looks at them.

A plan is made of NumPy arrays alone, so a scheduler serves paths without torch too, as long as
nobody asks it for tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Placed:
    """An array, and where its tensor shall be."""

    array: Array
    device: str | torch.device | None = None


def placed(array: Array, device: str | torch.device | None) -> Placed:
    """An array whose tensor shall be on a device."""
    return Placed(array, device)


class Table:
    """An attribute that is given an array, and read as a tensor of the same numbers.

    It can be given a tensor as well, as users of diffusers do.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> torch.Tensor:
        value = _stored(instance, self._name)
        if isinstance(value, Placed):
            import torch

            value = torch.from_numpy(np.array(value.array)).to(value.device)
            vars(instance)[_key(self._name)] = value
        return value

    def __set__(self, instance: Any, value: torch.Tensor | Array | np.generic | Placed) -> None:
        if isinstance(value, np.ndarray | np.generic):
            value = Placed(np.asarray(value))
        vars(instance)[_key(self._name)] = value


def array_of(instance: Any, name: str) -> Array:
    """The numbers of the `Table` of that name as an array, whichever they are kept as."""
    value = _stored(instance, name)
    return value.array if isinstance(value, Placed) else value.cpu().numpy()


def _key(name: str) -> str:
    return f"_{name}_table"


def _stored(instance: Any, name: str) -> Any:
    if _key(name) not in getattr(instance, "__dict__", {}):
        raise AttributeError(f"{type(instance).__name__!r} object has no attribute {name!r}")
    return vars(instance)[_key(name)]
