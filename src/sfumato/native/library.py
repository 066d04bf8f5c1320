"""Finding the compiled library, and what its functions take.

ctypes releases the interpreter's lock during each call. A function is only called where `features`
has what it needs: the library itself checks nothing.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_float, c_int, c_long, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from sfumato.errors import InputError, printable

AVX512, BF16, VNNI, AVX2 = 1, 2, 4, 8
#: Instruction sets by what they are called, each with those before it.
_BITS = {"avx2": AVX2, "avx512": AVX512, "avx512_vnni": VNNI, "avx512_bf16": BF16}

#: The environment variable that chooses among the kernels, when the library is first asked for.
SWITCH = "SFUMATO_KERNELS"
_ALL, _NONE = ("", "auto", "1"), ("none", "0")

_SIZES = POINTER(c_long)
#: Arguments of each function, in order; all return an integer unless `_RESULTS` says otherwise.
_ARGUMENTS: dict[str, tuple[type, ...]] = {
    "sfumato_features": (),
    "sfumato_use": (c_int,),
    "sfumato_packed_bytes": (c_int,),
    "sfumato_ceiling": (c_int, c_long),
    # from, to, bfloat16, packed, scales, offsets, bias, rows, length, columns, threads
    "sfumato_linear_int8": (
        c_void_p, c_void_p, c_int, *[c_void_p] * 4, c_long, c_long, c_long, c_int,
    ),
    # from, to, bfloat16, packed, scales, offsets, bias, sizes, threads
    "sfumato_winograd_int8": (c_void_p, c_void_p, c_int, *[c_void_p] * 4, _SIZES, c_int),
    "sfumato_convolve_int8": (c_void_p, c_void_p, c_int, *[c_void_p] * 4, _SIZES, c_int),
}  # fmt: skip
#: The same for functions that there are for each type of `TYPES`, as ``name_type``.
_TYPED_ARGUMENTS: dict[str, tuple[type, ...]] = {
    # weights, packed, columns, channels, kernel height, kernel width, strides, threads
    "sfumato_pack": (c_void_p, c_void_p, c_long, c_long, c_long, c_long, _SIZES, c_int),
    # weights, packed, columns, channels, strides, tile size, threads
    "sfumato_pack_winograd": (c_void_p, c_void_p, c_long, c_long, _SIZES, c_int, c_int),
    # from, to, packed, bias, rows, length, columns, threads
    "sfumato_linear": (c_void_p, c_void_p, c_void_p, c_void_p, c_long, c_long, c_long, c_int),
    # from, to, weights, bias, rows, length, columns, strides, threads
    "sfumato_linear_once": (
        *(c_void_p, c_void_p, c_void_p, c_void_p),
        *(c_long, c_long, c_long, _SIZES, c_int),
    ),
    # from, to, packed, bias, sizes, threads
    "sfumato_convolve": (c_void_p, c_void_p, c_void_p, c_void_p, _SIZES, c_int),
    "sfumato_winograd": (c_void_p, c_void_p, c_void_p, c_void_p, _SIZES, c_int),
    # from, to, weights, bias, sizes, strides, threads
    "sfumato_convolve_once": (*(c_void_p, c_void_p, c_void_p, c_void_p), _SIZES, _SIZES, c_int),
    "sfumato_winograd_once": (*(c_void_p, c_void_p, c_void_p, c_void_p), _SIZES, _SIZES, c_int),
    # queries, keys, values, out, bias, kind of bias, causal, scale, sizes, threads
    "sfumato_attention": (
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
        *(c_int, c_int, c_float, _SIZES, c_int),
    ),
    # from, to, weight, bias, sizes, epsilon, activation, threads
    "sfumato_group_norm": (
        *(c_void_p, c_void_p, c_void_p, c_void_p),
        *(_SIZES, c_float, c_int, c_int),
    ),
    # from, moments, sizes, threads
    "sfumato_group_moments": (c_void_p, c_void_p, _SIZES, c_int),
    # from, to, factors, sizes, activation, threads
    "sfumato_scale": (c_void_p, c_void_p, c_void_p, _SIZES, c_int, c_int),
    # from, to, weight, bias, rows, channels, epsilon, threads
    "sfumato_layer_norm": (
        *(c_void_p, c_void_p, c_void_p, c_void_p),
        *(c_long, c_long, c_float, c_int),
    ),
    # from, to, rows, channels, threads
    "sfumato_geglu": (c_void_p, c_void_p, c_long, c_long, c_int),
    # from, to, number of elements, activation, threads
    "sfumato_activate": (c_void_p, c_void_p, c_long, c_int, c_int),
    # from, to, type of blocks, number of blocks, threads
    "sfumato_expand_blocks": (c_void_p, c_void_p, c_int, c_long, c_int),
}
_RESULTS: dict[str, type | None] = {"sfumato_ceiling": c_long, "sfumato_use": None}
TYPES = ("bfloat16", "float32")


def _asked() -> str:
    """The value of the switch; empty for the best that there is.

    Raises:
        InputError: it is no value of the switch.
    """
    asked = os.environ.get(SWITCH, "").strip().lower()
    if asked not in (*_ALL, *_NONE, *_BITS):
        raise InputError(
            f"{SWITCH} is '{printable(asked)}'; it has to be one of auto, {', '.join(_BITS)}, none"
            " (or 0).",
            hint=f"Unset {SWITCH} to use the best that there is.",
        )
    return "" if asked in _ALL else asked


def switched_off() -> bool:
    """Whether ``SFUMATO_KERNELS`` is ``none`` or ``0``."""
    return _asked() in _NONE


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, held to what ``SFUMATO_KERNELS`` names; None where they were not built.

    Raises:
        InputError: the switch has another value, or names kernels that cannot run here.
    """
    asked = _asked()
    if asked in _NONE:
        return None
    found = _built()
    if asked:
        _hold_to(found, asked)
    return found


def _hold_to(found: ctypes.CDLL | None, asked: str) -> None:
    """Use the kernels for this instruction set and no better ones."""
    if found is None:
        raise InputError(
            f"{SWITCH} asks for the kernels for {asked}, but no kernels were built.",
            hint=f"Install sfumato again where there is a C compiler, or unset {SWITCH}.",
        )
    has = found.sfumato_features()
    if not has & _BITS[asked]:
        names = ", ".join(name for name, bit in _BITS.items() if has & bit)
        raise InputError(
            f"{SWITCH} asks for the kernels for {asked}, but this processor lacks it; it has"
            f" {names or 'none that there are kernels for'}.",
            hint=f"Unset {SWITCH} to use the best that there is.",
        )
    names = list(_BITS)
    found.sfumato_use(sum(_BITS[name] for name in names[: names.index(asked) + 1]))


def _built() -> ctypes.CDLL | None:
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kernels{suffix}")
        if path.is_file():
            return _loaded(path)
    return None


def _loaded(path: Path) -> ctypes.CDLL | None:
    try:
        found = ctypes.CDLL(str(path))
        for name, arguments in _ARGUMENTS.items():
            _declare(found, name, arguments, _RESULTS.get(name, c_int))
        for name, arguments in _TYPED_ARGUMENTS.items():
            for kind in TYPES:
                _declare(found, f"{name}_{kind}", arguments, c_int)
    except (OSError, AttributeError):  # for another system, or of another version
        return None
    return found


def _declare(
    found: ctypes.CDLL, name: str, arguments: tuple[type, ...], result: type | None
) -> None:
    function = getattr(found, name)
    function.argtypes = arguments
    function.restype = result


@cache
def features() -> int:
    """The instruction sets that kernels may use here: a sum of `AVX2`, `AVX512`, `BF16`, `VNNI`."""
    found = library()
    return 0 if found is None else found.sfumato_features()


@cache
def multiplied_as(dtype: str) -> str | None:
    """The type in which kernels multiply "float32" or "bfloat16" here; None if there are none.

    bfloat16 in memory is multiplied as such only where the processor has an instruction for that;
    elsewhere it is widened on the way. Packed weights are of this type.

    >>> multiplied_as("float64")
    """
    found = library()
    if found is None or dtype not in TYPES:
        return None
    return {4: "float32", 2: "bfloat16"}.get(found.sfumato_packed_bytes(dtype == "bfloat16"))


def can_compute(dtype: str) -> bool:
    """Whether there are kernels for "float32" or "bfloat16" here.

    >>> can_compute("float64")
    False
    """
    return multiplied_as(dtype) is not None


@contextmanager
def held_to(instructions: int) -> Iterator[None]:
    """Use only these of the processor's instruction sets for a while, in the whole process.

    What was packed outside does not fit inside, nor the other way about.

    Args:
        instructions: a sum as of `features`.
    """
    found, before = library(), features()
    if found is not None:
        _use(found, instructions)
    try:
        yield
    finally:
        if found is not None:
            _use(found, before)


def _use(found: ctypes.CDLL, instructions: int) -> None:
    found.sfumato_use(instructions)
    features.cache_clear()
    multiplied_as.cache_clear()


def feature_names() -> list[str]:
    """`features` in words; AVX2 goes without saying where there is more.

    >>> set(feature_names()) <= {"avx2", "avx512", "avx512_bf16", "avx512_vnni"}
    True
    """
    found = features()
    if found & AVX512:
        found &= ~AVX2
    return [name for name, bit in _BITS.items() if found & bit]


def describe() -> str:
    """One line on whether the kernels are in use, for which instructions, and why not."""
    asked = _asked()
    if features():
        chosen = f"; {SWITCH}={asked}" if asked else ""
        return f"in use ({', '.join(feature_names())}{chosen})"
    if switched_off():
        return f"switched off by {SWITCH}={asked}"
    built = library() is not None
    return "none for this processor" if built else "not built; torch computes alone"
