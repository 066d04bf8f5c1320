"""Settings of the process that count only before torch or NumPy are imported."""

from __future__ import annotations

import os


def share_processors() -> None:
    """Let torch's threads sleep, not spin, while they wait for each other.

    A spinning thread keeps its processor from whoever it waits for. Where another program holds
    one of two processors, a small network ran a hundred times slower so; on idle ones sleeping
    costs next to nothing. A value that the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def one_thread_for_numpy() -> None:
    """Let NumPy's products be computed by the thread that asks for them.

    The networks that the command draws with through NumPy are small; OpenBLAS shares each product
    between spinning threads, which on a busy machine took a hundred times as long. A value that the
    user has set stays.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
