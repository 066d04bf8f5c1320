"""What a saving is: a description that becomes a piece of the flow; `savings` has the kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfumato.diffusion.steering import GuidancePart
from sfumato.errors import InputError

if TYPE_CHECKING:
    from sfumato.pipelines.flow import Piece


@dataclass(frozen=True)
class Saving:
    """One way to compute less."""

    def piece(self) -> Piece:
        """What it does to one call."""
        raise NotImplementedError

    def parts(self) -> tuple[GuidancePart, ...]:
        """What it does to the guidance."""
        return ()


def as_savings(savings: Any) -> tuple[Saving, ...]:
    """What a call's ``savings`` holds: one or several.

    Raises:
        InputError: for anything else, or for two of a kind.
    """
    if savings is None:
        return ()
    listed = [savings] if isinstance(savings, Saving) else savings
    if not isinstance(listed, Sequence) or not all(isinstance(one, Saving) for one in listed):
        raise InputError(
            f"`savings` has to be a saving or a list of them but is {str(savings)[:80]}.",
            hint="For example [DeepCache(3), TokenMerging(0.5)].",
        )
    if len({type(one) for one in listed}) < len(listed):
        raise InputError("`savings` has two of a kind.", hint="Give each kind once.")
    return tuple(listed)
