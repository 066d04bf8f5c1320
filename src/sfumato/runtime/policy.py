"""What is chosen for the machine when the caller does not choose: precision, threads, memory.

Precision. The weights of a large model and all that its networks compute are bfloat16 where the
processor computes that in hardware: half the memory and half the time of float32. float16 is never
chosen on a CPU. A small model gains nothing and stays float32, and so does every model where
bfloat16 is emulated. These stay float32 (or wider) in any case, whatever the networks compute in:

- latents between steps, their noise, the sampler's sums and the guidance, when the precision was
  chosen here; so a seed draws the same picture as in float32, but for the networks' rounding
  (`DiffusionPipeline.latents_dtype`). A ``torch_dtype`` from the caller is taken for all of these,
  as in diffusers;
- the sums inside products, convolutions and attention, and the softmax: all kernels accumulate in
  float32 and round once;
- the statistics of group and layer norms;
- tables of samplers and schedules: float64.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path

import torch

from sfumato.errors import InputError
from sfumato.runtime.allocator import keep_memory
from sfumato.runtime.device import DTYPES
from sfumato.runtime.machine import LARGE as LARGE
from sfumato.runtime.machine import this_machine

logger = logging.getLogger(__name__)

#: A data type for models whose caller names none: one of `DTYPES`.
SWITCH = "SFUMATO_DTYPE"


def dtype_for_size(size: int, device: torch.device | None = None) -> torch.dtype:
    """The data type to compute in.

    Args:
        size: bytes of the UNet's weights in their file.
        device: where; None stands for the CPU.

    Raises:
        InputError: the environment variable ``SFUMATO_DTYPE`` holds no data type.

    >>> dtype_for_size(10**6)
    torch.float32
    """
    asked = os.environ.get(SWITCH, "auto")
    if asked not in DTYPES:
        raise InputError(
            f"{SWITCH} is {asked[:80]!r}; it has to be one of {', '.join(DTYPES)}, or unset."
        )
    if asked != "auto":
        return getattr(torch, asked)
    if device is not None and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device is not None and device.type == "mps":
        return torch.float16
    return getattr(torch, this_machine().dtype_for_size(size))


def network_size(path: Path) -> int:
    """Bytes of the UNet of a model in a folder, or of a model in one file; 0 if there is none."""
    try:
        if path.is_file():
            return path.stat().st_size
        files = (path / "unet").glob("*.*")
        return sum(f.stat().st_size for f in files if f.suffix in (".safetensors", ".bin"))
    except OSError:  # whoever reads the files says what is wrong with them
        return 0


def default_dtype(path: Path) -> torch.dtype | None:
    """The data type for a model that is loaded without one; None where an accelerator may be used.

    There the caller will move the pipeline, and float32 is what diffusers loads.
    """
    if SWITCH not in os.environ and torch.accelerator.is_available():
        return None
    return dtype_for_size(network_size(path))


@lru_cache(maxsize=1)
def prepare_process() -> None:
    """Set up threads and memory for drawing on the CPU; once, and logged in one line."""
    processors = this_machine().processors
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > processors:
        torch.set_num_threads(processors)  # torch does not know what a container may use
    logger.info(
        "Drawing on %d of %d processors (%s); memory from %s.",
        torch.get_num_threads(),
        processors,
        ", ".join(this_machine().instructions) or "no vector instructions known here",
        keep_memory(),
    )
