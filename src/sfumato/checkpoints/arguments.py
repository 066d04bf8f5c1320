"""Arguments that loading and saving share: data types and sizes; see `keywords` for others."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from sfumato.errors import InputError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def chosen_dtype(
    torch_dtype: torch.dtype | str | None, dtype: torch.dtype | str | None
) -> torch.dtype | None:
    """The dtype that the two spellings of the argument ask for; ``None`` means the file's own.

    Raises:
        InputError: both are given, or it is no floating-point type to compute in.
    """
    if torch_dtype is not None and dtype is not None:
        raise InputError("Give either `torch_dtype` or `dtype`, not both.")
    given = torch_dtype if dtype is None else dtype
    if given == "auto":
        return None
    if isinstance(given, str):
        given = getattr(torch, given.removeprefix("torch."), given)
    given = torch.float32 if given is None else given
    if given not in DTYPES:
        raise InputError(
            f"`torch_dtype` has to be one of {', '.join(map(str, DTYPES))} or 'auto' "
            f"but is {str(given)[:80]!r}."
        )
    return given


def shard_bytes(size: int | str) -> int:
    """A size in bytes from a number or text such as ``"10GB"`` (10^9) or ``"512MiB"`` (2^20).

    >>> shard_bytes("200KB")
    200000
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d{1,15})\s*([KMGT]?)(i?)B\s*", size, re.IGNORECASE)
        power = "KMGT".index(match[2].upper()) + 1 if match and match[2] else 0
        value = int(match[1]) * (1024 if match[3] else 1000) ** power if match else 0
    else:
        value = size if isinstance(size, int) and not isinstance(size, bool) else 0
    if value < 1:
        raise InputError(
            f"`max_shard_size` has to be a positive number of bytes, or as in '5GB', but is "
            f"{str(size)[:40]!r}."
        )
    return value


def floating_dtype(tensors: Iterable[torch.Tensor], wanted: torch.dtype | None) -> torch.dtype:
    """``wanted``, or the first floating-point type found that torch computes in."""
    if wanted is not None:
        return wanted
    found = (t.dtype for t in tensors if t.is_floating_point())
    first = next(found, torch.float32)
    return first if first in DTYPES else torch.float32
