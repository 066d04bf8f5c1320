"""The compiled kernels (`sfumato.native`) inside of XLA's programs for processors.

XLA calls them through its foreign function interface; torch has no part in it. Arrays are those of
`sfumato.jax.ops`: channels last, weights as the files have them. Weights are laid out for the
kernels anew in each call, which costs a few percent, so that parameters stay what they are.

On several devices each computes the pictures that it holds. There are no derivatives here;
`sfumato.jax.forms` takes those of the plain forms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_batching import sequential_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sfumato.native.library import can_compute, library
from sfumato.runtime.machine import this_machine

_NAMES = ("convolve", "linear", "attention", "group_norm", "geglu")


@cache
def _registered() -> bool:
    """Tell XLA of the kernels; False where there are none."""
    found = library()
    if found is None:
        return False
    handlers = {name: getattr(found, f"sfumato_xla_{name}", None) for name in _NAMES}
    if None in handlers.values():  # built before there were any
        return False
    for name, function in handlers.items():
        handler = jax.ffi.pycapsule(function)
        jax.ffi.register_ffi_target(f"sfumato_{name}", handler, platform="cpu")
    return True


def usable(*arrays: Array | None) -> bool:
    """Whether there are kernels for arrays of this type (None are left out) on processors here."""
    types = {str(array.dtype) for array in arrays if array is not None}
    return len(types) == 1 and can_compute(types.pop()) and _registered()


def convolve(
    x: Array, weight: Array, bias: Array | None, *, tile: int, stride: int, padding: int
) -> Array:
    """``(N, H, W, C)`` by ``(O, C, k, k)`` to ``(N, H', W', O)``.

    Args:
        x, weight, bias: all of one type.
        tile: 4 or 6 for Winograd's method (3x3, stride and padding 1), 0 for the direct way.
        stride, padding: of both axes; padding is on all sides.
    """
    sides = ((n + 2 * padding - weight.shape[2]) // stride + 1 for n in x.shape[1:3])
    shape = (x.shape[0], *sides, weight.shape[0])
    return _call("convolve", shape, _given(x, weight, bias), 1, (tile, stride, padding))


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """``(N, ..., C)`` by ``(O, C)``, which may have two more axes of 1, to ``(N, ..., O)``."""
    return _call("linear", (*x.shape[:-1], weight.shape[0]), _given(x, weight, bias), 1)


def attention(
    q: Array, k: Array, v: Array, bias: Array | None, *, heads: int, causal: bool
) -> Array:
    """Softmax attention; arguments as of `sfumato.graph.ops.Ops.attention`."""
    arrays = [q, k, v]
    if bias is not None:
        wide = bias.astype(jnp.float32)
        arrays.append(jnp.broadcast_to(wide, (q.shape[0], *wide.shape[1:])))
    scale = (q.shape[2] // heads) ** -0.5
    shape = (*q.shape[:2], v.shape[2])
    return _call("attention", shape, arrays, len(arrays), (heads, int(causal)), scale)


def group_norm(
    x: Array, weight: Array, bias: Array, *, groups: int, eps: float, silu: bool
) -> Array:
    """Normalise groups of channels of ``(N, H, W, C)``; then SiLU if asked for."""
    return _call("group_norm", x.shape, [x, weight, bias], 1, (groups, int(silu)), eps)


def geglu(x: Array) -> Array:
    """``(N, ..., 2 C)`` to ``(N, ..., C)``: the first half times the GELU of the second."""
    return _call("geglu", (*x.shape[:-1], x.shape[-1] // 2), [x], 1)


def _given(*arrays: Array | None) -> list[Array]:
    return [array for array in arrays if array is not None]


def _call(
    name: str,
    shape: tuple[int, ...],
    arrays: list[Array],
    of_pictures: int,
    numbers: tuple[int, ...] = (),
    real: float = 0.0,
) -> Array:
    """Call a kernel, on each device for its pictures.

    Args:
        name: of the kernel.
        shape: of the result, pictures first.
        arrays: the arguments; the result is of the first one's type.
        of_pictures: how many of them have an axis of pictures first.
        numbers, real: what the kernel is told beside sizes.
    """
    # Several devices of one processor share its threads.
    threads = max(1, this_machine().processors // jax.local_device_count())
    given = {"numbers": np.array([*numbers, threads], np.int64), "real": np.float32(real)}

    def run(*arrays: Array) -> Array:
        out = jax.ShapeDtypeStruct((arrays[0].shape[0], *shape[1:]), arrays[0].dtype)
        return jax.ffi.ffi_call(f"sfumato_{name}", out)(*arrays, **given)

    shared = _by_pictures(run, [array.ndim for array in arrays], len(shape), of_pictures)
    return sequential_vmap(shared)(*arrays)


def _by_pictures(
    run: Callable[..., Array], ranks: list[int], rank: int, of_pictures: int
) -> Callable[..., Array]:
    """``run``, for XLA to give each device its share of the pictures and all of the rest."""

    def partition(mesh: Any, arguments: Any, result: Any) -> Any:
        sharding = arguments[0].sharding
        spec = sharding.spec if isinstance(sharding, NamedSharding) else ()
        mine = NamedSharding(mesh, P(*spec[:1]))
        all_of_it = NamedSharding(mesh, P())
        asked = tuple(mine if i < of_pictures else all_of_it for i in range(len(ranks)))
        return mesh, run, mine, asked

    names = (f"axis{number}" for number in count())
    own_axis = [*(i < of_pictures for i in range(len(ranks))), True]
    sides = [
        " ".join("pictures" if own and not axis else next(names) for axis in range(size))
        for size, own in zip([*ranks, rank], own_axis, strict=True)
    ]
    shared = custom_partitioning(run)
    rule = f"{', '.join(sides[:-1])} -> {sides[-1]}"
    shared.def_partition(partition=partition, sharding_rule=rule)
    return shared
