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
from sfumato.checkpoints.weight_files import base_names, check_variant, find_weights
from sfumato.models.legacy import rename_legacy_keys

Params = dict[str, Array]


def read_params(
    folder: Path,
    model_class: type[Any],
    *,
    root: Path,
    variant: str | None = None,
    dtype: Any = None,
) -> Params:
    """The weights in a network's folder.

    Args:
        folder: with safetensors files in diffusers' or transformers' naming.
        model_class: of the network; it tells the names of the files.
        root: the folder that no link may leave.
        variant: such as ``"fp16"``.
        dtype: of the arrays; None keeps that of the file.

    Raises:
        ModelNotFoundError: there are no such files.
        CheckpointError: a file is damaged.
    """
    check_variant(variant)
    files = find_weights(
        folder,
        base_names(model_class),
        root=root,
        variant=variant,
        use_safetensors=True,
        fall_back=True,
    )
    tensors = rename_legacy_keys(read_weight_files(files))
    return {name: as_array(tensor, dtype) for name, tensor in tensors.items()}


def as_array(tensor: StoredTensor, dtype: Any = None) -> Array:
    """A tensor of a file on JAX's default device, as it is or in another type.

    Integers, such as positions, stay what they are.
    """
    raw = tensor.raw.view(ml_dtypes.bfloat16) if tensor.dtype == "BF16" else tensor.raw
    if raw.dtype == np.int64:
        return jnp.asarray(raw.astype(np.int32))
    floating = jnp.issubdtype(raw.dtype, jnp.floating)
    return jnp.asarray(raw, dtype=dtype if floating else None)


def random_params(class_name: str, config: Mapping[str, Any], key: Array) -> Params:
    """Random parameters of a network; see `sfumato.jax.models.FlaxModelMixin.init_weights`.

    Args:
        class_name: of the class in torch, which knows their names and shapes.
        config: of the network.
        key: of `jax.random`.
    """
    import torch

    import sfumato

    with torch.device("meta"):
        shapes = getattr(sfumato, class_name).from_config(dict(config)).state_dict()
    made: Params = {}
    for number, (name, like) in enumerate(sorted(shapes.items())):
        shape = tuple(like.shape)
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
