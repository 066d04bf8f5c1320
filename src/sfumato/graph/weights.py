"""How the networks of this folder find their weights: by diffusers' names, one scope per layer.

``weights / "conv_in"`` is a scope; a backend asks it for ``weight`` and ``bias``. What the values
are is between whoever made the mapping and the backend: arrays in memory, tensors on the pages of
a file (`sfumato.checkpoints.arrays`), or the leaves of a pytree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sfumato.errors import WeightsMismatchError, did_you_mean


class Weights:
    """A network's weights, or the part of them below a prefix.

    Args:
        arrays: values by full name, as in the safetensors file of the network.
        prefix: the part that this scope is about.
    """

    __slots__ = ("_made", "arrays", "prefix")

    def __init__(self, arrays: Mapping[str, Any], prefix: str = "") -> None:
        self.arrays = arrays
        self.prefix = prefix
        self._made: dict[tuple[str, str], Any] = {}

    def __truediv__(self, name: str | int) -> Weights:
        """The scope of a part: ``weights / "down_blocks" / 0``."""
        scope = Weights.__new__(Weights)
        scope.arrays, scope._made = self.arrays, self._made
        scope.prefix = self.path(str(name))
        return scope

    def path(self, name: str) -> str:
        """The full name of something in this scope."""
        return f"{self.prefix}.{name}" if self.prefix else name

    def __getitem__(self, name: str) -> Any:
        """The value ``name`` of this scope.

        Raises:
            WeightsMismatchError: there is none; the message has the full name.
        """
        path = self.path(name)
        try:
            return self.arrays[path]
        except KeyError:
            raise WeightsMismatchError(
                f"The weights lack '{path}', which the configuration asks for."
                f"{did_you_mean(path, self.arrays)}"
            ) from None

    def get(self, name: str) -> Any:
        """As ``[name]``, but None where there is no such value."""
        return self.arrays.get(self.path(name))

    def __contains__(self, name: str) -> bool:
        return self.path(name) in self.arrays

    def once(self, what: str, make: Callable[[], Any]) -> Any:
        """What a backend makes of this layer, made at the first call and kept.

        Args:
            what: tells the kinds of results of one layer apart, such as ``"packed"``.
            make: makes it; scopes that point to the same place share the result.
        """
        key = (self.prefix, what)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def check_width(layer: Weights, width: int, wanted: int) -> None:
    """Raise `WeightsMismatchError` unless a layer takes so many channels."""
    if width != wanted:
        raise WeightsMismatchError(
            f"The layer '{layer.prefix}' takes {wanted} channels but is given {width}: the weights"
            " are not those of the configuration, or an input is not what they are made for."
        )
