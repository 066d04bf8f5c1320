"""Settings of the process that count only when they are made before torch is imported."""

from __future__ import annotations

import os


def share_processors() -> None:
    """Let torch's threads sleep, not spin, while they wait for each other.

    A spinning thread keeps its processor from whoever it waits for. Where another program holds
    one of two processors, a small network ran a hundred times slower so; on idle ones sleeping
    costs next to nothing. A value that the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
