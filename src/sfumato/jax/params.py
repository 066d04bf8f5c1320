"""Weights as pytrees: flat dictionaries of arrays under the names and shapes of the files.

A network's parameters are ``{"conv_in.weight": Array, ...}``, just as a safetensors file has them,
so reading and writing convert nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import Array
from safetensors.numpy import save_file

from sfumato.checkpoints.arrays import StoredTensor, read_weight_files
from sfumato.checkpoints.atomic import atomic_path
from sfumato.checkpoints.comparison import compare
from sfumato.checkpoints.files import shown
from sfumato.checkpoints.mapping import CHECK_MAPPED_BELOW
from sfumato.checkpoints.weight_files import base_names, check_variant, find_weights
from sfumato.models.legacy import rename_legacy_keys

Params = dict[str, Array]


def read_params(
    folder: Path,
    model: Any,
    *,
    root: Path,
    variant: str | None = None,
    dtype: Any = None,
) -> Params:
    """The weights in a network's folder; those that it does not have are left out.

    Args:
        folder: with safetensors files in diffusers' or transformers' naming.
        model: the network, a `sfumato.jax.mixin.FlaxModelMixin`: it tells the names of the files,
            and names and shapes of the weights.
        root: the folder that no link may leave.
        variant: such as ``"fp16"``.
        dtype: of the arrays; None keeps that of the file.

    Raises:
        ModelNotFoundError: there are no such files.
        CheckpointError: a file is damaged, has NaN or infinity in it, or does not fit the network.
    """
    check_variant(variant)
    files = find_weights(
        folder,
        base_names(type(model)),
        root=root,
        variant=variant,
        use_safetensors=True,
        fall_back=True,
    )
    where = shown(files.paths[0] if files.weight_map is None else folder)
    found = read_weight_files(files)
    shapes = {name: tensor.shape for name, tensor in found.items()}
    tensors = rename_legacy_keys(found)
    expected = model.shapes(tensors)
    compare(expected, shapes, where, model.class_name)
    small = all(path.stat().st_size < CHECK_MAPPED_BELOW for path in files.paths)
    for name in expected:
        tensors[name].require_numbers(finite=small)
    return {name: as_array(tensors[name], dtype) for name in expected}


def as_array(tensor: StoredTensor, dtype: Any = None) -> Array:
    """A tensor of a file on JAX's default device, as it is or in another type.

    Integers, such as positions, stay what they are.
    """
    raw = tensor.raw.view(ml_dtypes.bfloat16) if tensor.dtype == "BF16" else tensor.raw
    if raw.dtype == np.int64:
        return jnp.asarray(raw.astype(np.int32))
    floating = jnp.issubdtype(raw.dtype, jnp.floating)
    return jnp.asarray(raw, dtype=dtype if floating else None)


def random_params(shapes: Mapping[str, tuple[int, ...]], key: Array) -> Params:
    """Random parameters; see `sfumato.jax.mixin.FlaxModelMixin.init_weights`.

    Args:
        shapes: by name.
        key: of `jax.random`.
    """
    made: Params = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        if len(shape) > 1:
            drawn = jax.random.normal(jax.random.fold_in(key, number), shape)
            made[name] = drawn * np.prod(shape[1:]) ** -0.5
        else:
            made[name] = jnp.full(shape, float(name.endswith("weight")))
    return made


def cast_floating(params: Mapping[str, Any], dtype: Any, mask: Any = None) -> dict[str, Any]:
    """Parameters in another type; integers stay.

    Args:
        params: a pytree.
        dtype: such as ``jnp.bfloat16``.
        mask: a pytree of bools of the same structure, or the start of one: False leaves a leaf.
    """

    def cast(leaf: Any, wanted: bool = True) -> Any:
        array = jnp.asarray(leaf)
        change = wanted and jnp.issubdtype(array.dtype, jnp.floating)
        return array.astype(dtype) if change else array

    if mask is None:
        return jax.tree.map(cast, dict(params))
    return jax.tree.map(cast, dict(params), mask)


def write_params(path: str | PathLike[str], params: Mapping[str, Any]) -> None:
    """Write a flat dictionary of arrays as a safetensors file; whole or not at all."""
    arrays = {name: np.ascontiguousarray(array) for name, array in params.items()}
    with atomic_path(Path(path)) as temporary:
        save_file(arrays, temporary, metadata={"format": "pt"})
