"""A checkpoint in one file as configurations and arrays, for backends without torch's networks.

The file is read by torch's loaders, so that every layout and format that they know is known here;
the numbers are shared, not copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.checkpoints.arrays import StoredTensor
from sfumato.checkpoints.original.convert import read_parts
from sfumato.errors import CheckpointError

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}


@dataclass(frozen=True)
class Model:
    """What a file holds.

    Attributes:
        configs: of ``unet``, ``vae`` and ``text_encoder``.
        tensors: their weights by diffusers' names.
        tokenizer, scheduler: that belong to the model.
    """

    configs: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, StoredTensor]]
    tokenizer: Any
    scheduler: Any


def read_model(path: str | PathLike[str], **options: Any) -> Model:
    """Read a whole checkpoint; ``options`` as of `read_parts`.

    Raises:
        CheckpointError: the file is damaged, unsafe, or no whole text-to-image model.
    """
    parts = read_parts(path, **options)
    missing = {"unet", "vae", "text_encoder"} - set(parts.networks)
    if missing or "tokenizer" not in parts.others:
        raise CheckpointError(
            f"'{path}' is no whole text-to-image model: it lacks {', '.join(sorted(missing))}."
        )
    networks: Mapping[str, Any] = parts.networks
    return Model(
        configs={name: network.config for name, network in networks.items()},
        tensors={name: _stored(network, Path(path)) for name, network in networks.items()},
        tokenizer=parts.others["tokenizer"],
        scheduler=parts.others["scheduler"],
    )


def _stored(network: Any, path: Path) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(name, _NAMES[tensor.dtype], _numbers(tensor), path)
        for name, tensor in network.state_dict().items()
    }


def _numbers(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The numbers of a tensor; NumPy has no bfloat16, so of those the bits."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
