"""One call on many devices: a mesh for ``jit``, and the older forms of ``pmap``.

The pictures of a batch are spread over the axis ``data`` of a `jax.sharding.Mesh`; parameters are
copied to every device, or spread over an axis ``model`` when there is one. XLA puts in what
communication it takes. Code that was written for ``pmap`` gives every argument a leading axis of
devices (`replicate`, `shard`); it is understood, and answered in the same form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sfumato.errors import InputError

#: Names of the axes of a mesh.
DATA, MODEL = "data", "model"


def make_mesh(devices: int | None = None, model: int = 1, *, local: bool = False) -> Mesh:
    """A mesh over the first devices.

    Args:
        devices: how many; None takes all.
        model: over how many of them each parameter is spread; they have to divide ``devices``.
        local: of this process alone, rather than of all hosts.

    Raises:
        InputError: there are not so many, or they cannot be divided so.
    """
    present = jax.local_devices() if local else jax.devices()
    count = len(present) if devices is None else devices
    if not 1 <= count <= len(present) or model < 1 or count % model:
        raise InputError(
            f"There are {len(present)} devices; {count} of them in groups of {model} are asked for."
        )
    grid = np.array(present[:count]).reshape(count // model, model)
    return Mesh(grid, (DATA, MODEL))


def gather(x: Array) -> np.ndarray[Any, Any]:
    """All of an array, such as the pictures of a call, on every host.

    Every process has to call this where the array is spread over several of them.
    """
    if x.is_fully_addressable:
        return np.asarray(x)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(x, tiled=True))


def replicate(tree: Any, devices: int | None = None) -> Any:
    """Every leaf with a leading axis of devices, as ``flax.jax_utils.replicate`` makes it."""
    count = jax.local_device_count() if devices is None else devices
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), tree)


def unreplicate(tree: Any) -> Any:
    """The inverse of `replicate`."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


def is_replicated(params: Mapping[str, Any]) -> bool:
    """Whether a pipeline's parameters have an axis of devices, as `replicate` gives them."""
    bias = params.get("unet", {}).get("conv_in.bias")
    return getattr(bias, "ndim", 1) == 2


def shard(tree: Any, devices: int | None = None) -> Any:
    """Every leaf ``(B, ...)`` as ``(devices, B / devices, ...)``."""
    count = jax.local_device_count() if devices is None else devices

    def split(leaf: Any) -> Any:
        if leaf.shape[0] % count:
            raise InputError(
                f"A batch of {leaf.shape[0]} cannot be shared out among {count} devices.",
                hint=f"Make it a multiple of {count}.",
            )
        return leaf.reshape(count, -1, *leaf.shape[1:])

    return jax.tree.map(split, tree)


@dataclass(frozen=True)
class Spread:
    """How a call is spread.

    Attributes:
        mesh: the devices.
    """

    mesh: Mesh

    def check(self, batch: int) -> None:
        """Raise `InputError` unless a batch can be shared out evenly."""
        count = self.mesh.shape[DATA]
        if batch % count:
            raise InputError(
                f"A batch of {batch} pictures cannot be shared out among {count} devices.",
                hint=f"Make it a multiple of {count}.",
            )

    def batch(self, x: Array) -> Array:
        """Pictures, spread over ``data``."""
        return jax.device_put(x, NamedSharding(self.mesh, P(DATA)))

    def everywhere(self, tree: Any) -> Any:
        """Small arrays, copied to every device."""
        return jax.device_put(tree, NamedSharding(self.mesh, P()))

    def params(self, tree: Any) -> Any:
        """Parameters, copied or spread; those that lie so already are not moved."""
        return jax.tree.map(self._place, tree)

    def _place(self, leaf: Any) -> Array:
        parts = self.mesh.shape.get(MODEL, 1)
        axes: list[str | None] = [None] * jnp.ndim(leaf)
        sizes = [size if size % parts == 0 else 0 for size in jnp.shape(leaf)]
        if parts > 1 and len(sizes) > 1 and max(sizes):
            axes[int(np.argmax(sizes))] = MODEL
        return jax.device_put(leaf, NamedSharding(self.mesh, P(*axes)))
