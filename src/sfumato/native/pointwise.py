"""Norms and activations by the compiled kernels, on arrays of any library.

Arrays are given by the address of their first number, and lie without gaps, channels last; results
may take their input's place. torch's tensors come here through `sfumato.runtime.pointwise`.
"""

from __future__ import annotations

import ctypes
from typing import Any, Literal

from sfumato.native.library import library

Activation = Literal["silu", "gelu", "quick_gelu"]
_KINDS = {None: 0, "silu": 1, "gelu": 2, "quick_gelu": 3}


def group_norm(
    dtype: str,
    source: int,
    target: int,
    weight: int | None,
    bias: int | None,
    *,
    batch: int,
    pixels: int,
    channels: int,
    groups: int,
    eps: float,
    silu: bool = False,
    threads: int = 1,
) -> None:
    """Normalise each group of channels of ``(batch, pixels, channels)``; then SiLU if asked for.

    Statistics are exact to float32's last digits, however far the mean is from zero.

    Args:
        dtype: of all arrays, one of which `library.can_compute` says yes.
        source, target: addresses of input and result.
        weight, bias: addresses of one number per channel each, or None.
        batch, pixels, channels, groups: sizes.
        eps: added to the variance.
        silu: whether SiLU follows.
        threads: how many to use at the most.

    Raises:
        MemoryError: there is none for the sums.
    """
    sizes = (ctypes.c_long * 4)(batch, pixels, channels, groups)
    function = _function("group_norm", dtype)
    if function(source, target, weight, bias, sizes, eps, int(silu), threads):
        raise MemoryError("There is not enough memory for a group norm.")


def group_moments(
    dtype: str,
    source: int,
    moments: int,
    *,
    batch: int,
    pixels: int,
    channels: int,
    groups: int,
    threads: int = 1,
) -> None:
    """The mean, and the sum of squares around it, of each group of channels of each picture.

    Args:
        moments: address of ``(batch, groups, 2)`` numbers of float64.

    The others, and errors, are those of `group_norm`.
    """
    sizes = (ctypes.c_long * 4)(batch, pixels, channels, groups)
    if _function("group_moments", dtype)(source, moments, sizes, threads):
        raise MemoryError("There is not enough memory for a group norm.")


def scale(
    dtype: str,
    source: int,
    target: int,
    factors: int,
    *,
    batch: int,
    pixels: int,
    channels: int,
    silu: bool = False,
    threads: int = 1,
) -> None:
    """``(batch, pixels, channels)`` times and plus a number per channel; then SiLU if asked for.

    Args:
        factors: address of ``(batch, 2, channels)`` numbers of float32: factors, then summands.

    The others are those of `group_norm`.
    """
    sizes = (ctypes.c_long * 3)(batch, pixels, channels)
    _function("scale", dtype)(source, target, factors, sizes, int(silu), threads)


def layer_norm(
    dtype: str,
    source: int,
    target: int,
    weight: int | None,
    bias: int | None,
    *,
    rows: int,
    channels: int,
    eps: float,
    threads: int = 1,
) -> None:
    """Normalise each row of ``(rows, channels)``; arguments as in `group_norm`."""
    function = _function("layer_norm", dtype)
    function(source, target, weight, bias, rows, channels, eps, threads)


def geglu(
    dtype: str, source: int, target: int, *, rows: int, channels: int, threads: int = 1
) -> None:
    """``(rows, 2 * channels)`` to ``(rows, channels)``: a half times the GELU of the other."""
    _function("geglu", dtype)(source, target, rows, channels, threads)


def activate(
    dtype: str, source: int, target: int, *, count: int, kind: Activation, threads: int = 1
) -> None:
    """An activation of ``count`` numbers; GELU with the error function."""
    _function("activate", dtype)(source, target, count, _KINDS[kind], threads)


def _function(name: str, dtype: str) -> Any:
    return getattr(library(), f"sfumato_{name}_{dtype}")
