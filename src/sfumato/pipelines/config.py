"""A pipeline's configuration: which classes its components have, and its own few settings."""

from __future__ import annotations

from typing import Any, NoReturn, Self


class PipelineConfig(dict[str, Any]):
    """A read-only mapping whose keys are attributes too: the content of ``model_index.json``.

    A component is a pair ``(library, class)``, or ``(None, None)`` when it is absent; keys that
    begin with an underscore are notes, not arguments of the constructor.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The configuration has no entry '{name}'.") from None

    def with_changes(self, **changes: Any) -> Self:
        """A copy with some entries added or replaced."""
        return type(self)({**self, **changes})

    def _fixed(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("A configuration is read-only; assign to the pipeline's attributes.")

    __setitem__ = __delitem__ = __setattr__ = __ior__ = _fixed
    clear = pop = popitem = setdefault = update = _fixed  # pyright: ignore

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)
