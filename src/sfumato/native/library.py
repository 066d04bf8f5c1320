"""Finding the compiled library, and what its functions take.

ctypes releases the interpreter's lock during each call. A function is only called where `features`
has what it needs: the library itself checks nothing.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_float, c_int, c_long
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

AVX512, BF16, VNNI = 1, 2, 4
_NAMES = {AVX512: "avx512", BF16: "avx512_bf16", VNNI: "avx512_vnni"}

#: Arguments of each function, in order; all return nothing unless `_RESULTS` says otherwise.
_ARGUMENTS: dict[str, tuple[type, ...]] = {
    "sfumato_features": (),
    "sfumato_ceiling": (c_int, c_long),
}
_RESULTS = {"sfumato_features": c_int, "sfumato_ceiling": c_float}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they were not built or ``SFUMATO_KERNELS=0`` is set."""
    if os.environ.get("SFUMATO_KERNELS") == "0":
        return None
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kernels{suffix}")
        if path.is_file():
            return _loaded(path)
    return None


def _loaded(path: Path) -> ctypes.CDLL | None:
    try:
        found = ctypes.CDLL(str(path))
        for name, arguments in _ARGUMENTS.items():
            function = getattr(found, name)
            function.argtypes = arguments
            function.restype = _RESULTS.get(name)
    except (OSError, AttributeError):  # for another system, or of another version
        return None
    return found


@cache
def features() -> int:
    """The instruction sets that kernels may use here: a sum of `AVX512`, `BF16` and `VNNI`."""
    found = library()
    return 0 if found is None else found.sfumato_features()


def feature_names() -> list[str]:
    """`features` in words.

    >>> set(feature_names()) <= {"avx512", "avx512_bf16", "avx512_vnni"}
    True
    """
    return [name for bit, name in _NAMES.items() if features() & bit]
