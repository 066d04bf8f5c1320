"""What calls return: a dataclass that is also an ordered mapping and indexes like a tuple.

Networks and pipelines return subclasses of `BaseOutput`. Nothing here imports torch; once the
networks are imported, every subclass is also a torch pytree node (see `register_pytrees`).
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, NoReturn

_waiting: list[type[BaseOutput]] = []


class BaseOutput(OrderedDict[str, Any]):
    """Base of all outputs; subclasses are decorated with ``@dataclass``.

    Fields are read by attribute (``out.sample``), by key (``out["sample"]``) or by position
    (``out[0]``, ``out[:1]``). Positions count only the fields that are not None. The set of
    fields is fixed; their values may be replaced.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _waiting.append(cls)
        if "torch.utils._pytree" in sys.modules:
            register_pytrees()

    def __post_init__(self) -> None:
        for field in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if value is not None:
                super().__setitem__(field.name, value)

    def to_tuple(self) -> tuple[Any, ...]:
        """The values of all fields that are not None, in order."""
        return tuple(self[key] for key in self.keys())

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self and value is not None:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        values = tuple(getattr(self, f.name) for f in fields(self))  # pyright: ignore[reportArgumentType]
        return type(self), values

    def _fixed(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"The fields of {type(self).__name__} cannot be added or removed.")

    __delitem__ = pop = popitem = setdefault = update = clear = _fixed  # pyright: ignore


def register_pytrees() -> None:
    """Make every output class known so far a torch pytree node.

    The networks call this when they are imported; classes defined later register themselves.
    """
    from torch.utils import _pytree

    def flatten(output: BaseOutput) -> tuple[list[Any], list[str]]:
        return list(output.to_tuple()), list(output.keys())

    while _waiting:
        cls = _waiting.pop()

        def unflatten(
            values: Iterable[Any], keys: list[str], cls: type[BaseOutput] = cls
        ) -> BaseOutput:
            return cls(**dict(zip(keys, values, strict=True)))

        name = f"{cls.__module__}.{cls.__qualname__}"
        _pytree.register_pytree_node(cls, flatten, unflatten, serialized_type_name=name)
