"""What the processor of this machine can do, and how much of it this process may use.

Nothing here imports torch: the command's first picture asks too.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
#: Processors that a container may use: quota and period in microseconds (control groups 2 and 1).
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
CPU_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
#: Flags that tell how fast sfumato can be; the first three are x86's, the others ARM's.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
#: Bytes of a UNet's files from which on precision matters for speed.
LARGE = 256 * 2**20
#: Any of these means that products of bfloat16 take half the time of float32's.
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The processor, as far as it matters here.

    Attributes:
        instructions: which of `INSTRUCTIONS` it has.
        processors: how many this process may use.
    """

    instructions: tuple[str, ...]
    processors: int

    @property
    def fast_bfloat16(self) -> bool:
        """Whether bfloat16 is computed in hardware rather than through float32."""
        return not _BFLOAT16.isdisjoint(self.instructions)

    def dtype_for_size(self, size: int) -> str:
        """The type to compute a model in on the processor; see `sfumato.runtime.policy`.

        Args:
            size: bytes of the UNet's weights in their file.
        """
        return "bfloat16" if self.fast_bfloat16 and size >= LARGE else "float32"


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """The machine that this process runs on.

    >>> this_machine().processors >= 1
    True
    """
    flags = machine_flags()
    return Machine(
        instructions=tuple(name for name in INSTRUCTIONS if name in flags),
        processors=_processors(),
    )


def machine_flags() -> frozenset[str]:
    """All that the processor says it can do, in the words of its system; empty where unknown."""
    return _linux_flags() if CPU_INFO.exists() else _apple_flags()


def _linux_flags() -> frozenset[str]:
    """The flags of the first processor; ARM's kernel calls them features."""
    try:
        text = CPU_INFO.read_text("utf-8", "replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _apple_flags() -> frozenset[str]:
    if platform.system() != "Darwin":
        return frozenset()
    asked = ("hw.optional.arm.FEAT_BF16", "hw.optional.AdvSIMD")
    found = []
    for name, flag in zip(asked, ("bf16", "asimd"), strict=True):
        said = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
        found += [flag] if said.stdout.strip() == "1" else []
    return frozenset(found)


def _processors() -> int:
    """Those that the scheduler gives this process, less what a container holds back."""
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    else:
        usable = os.cpu_count() or 1
    share = _container_share()
    return usable if share is None else max(1, min(usable, math.ceil(share)))


def _container_share() -> float | None:
    """Processors' worth of time that the control group allows; None for all there is."""
    try:
        quota, period = CPU_LIMIT.read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = CPU_QUOTA.read_text(), CPU_PERIOD.read_text()
        except OSError:
            return None
    try:
        share = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):  # the quota may be "max"
        return None
    return share if share > 0 else None
