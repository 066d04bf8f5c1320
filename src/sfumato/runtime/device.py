"""Where and in which precision to compute, from the names that people type."""

from __future__ import annotations

import torch

from sfumato.errors import InputError, did_you_mean

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def pick_device(name: str = "auto") -> torch.device:
    """The device with the given name; ``"auto"`` takes an accelerator if there is one.

    Args:
        name: one of `DEVICES`, or a numbered one such as ``"cuda:1"``.

    Raises:
        InputError: when the name is unknown or the machine has no such device.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and not index.isascii()) or (index and not index.isdigit()):
        raise InputError(
            f"There is no device {name[:80]!r}; it is one of {', '.join(DEVICES)}."
            f"{did_you_mean(kind, DEVICES)}"
        )
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(_has_mps())}
    if kind == "auto":
        return torch.device(next((k for k in ("cuda", "mps") if counts[k]), "cpu"))
    if int(index or 0) >= counts[kind]:
        raise InputError(f"This machine has no device {name!r}.", hint="Use the device 'cpu'.")
    return torch.device(name)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def pick_dtype(name: str, device: torch.device | None = None) -> torch.dtype:
    """The data type with the given name; ``"auto"`` is `sfumato.runtime.policy`'s business.

    Args:
        name: one of `DTYPES` but the first.
        device: where it will be used; None stands for the CPU.

    Raises:
        InputError: when the name is unknown, or for float16 on a CPU, which is slower there than
            float32 and overflows.

    >>> pick_dtype("bfloat16")
    torch.bfloat16
    """
    if name not in DTYPES[1:]:
        raise InputError(
            f"There is no data type {name[:80]!r}; it is one of {', '.join(DTYPES)}."
            f"{did_you_mean(name, DTYPES)}"
        )
    if name == "float16" and (device is None or device.type == "cpu"):
        raise InputError(
            "float16 is slow and overflows on a CPU.", hint="Use float32 or bfloat16 there."
        )
    return getattr(torch, name)


def set_threads(count: int | None) -> int:
    """Let torch use so many CPU threads (None leaves its own choice); returns the number in use.

    Raises:
        InputError: unless the count is from 1 to 1024.
    """
    if count is not None:
        if not 1 <= count <= 1024:
            raise InputError(f"The number of threads has to be from 1 to 1024, not {count}.")
        torch.set_num_threads(count)
    return torch.get_num_threads()
