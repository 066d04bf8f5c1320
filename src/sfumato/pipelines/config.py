"""A pipeline's configuration: which classes its components have, and its own few settings."""

from __future__ import annotations

from typing import Any, Self

from sfumato.config import FrozenDict


class PipelineConfig(FrozenDict):
    """The content of ``model_index.json``.

    A component is a pair ``(library, class)``, or ``(None, None)`` when it is absent; keys that
    begin with an underscore are notes, not arguments of the constructor.
    """

    def with_changes(self, **changes: Any) -> Self:
        """A copy with some entries added or replaced."""
        return type(self)({**self, **changes})
