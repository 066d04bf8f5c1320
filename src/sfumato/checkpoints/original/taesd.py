"""TAESD as its author publishes it: an encoder and a decoder, with numbered layers, in two files.

`AutoencoderTiny.from_taesd` comes here. The numbers are those of `torch.nn.Sequential`; in the
decoder layer 0 clamps and has no weights, so diffusers' names count from the one after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.files import checked_path
from sfumato.checkpoints.fitting import Shape, assign, build_without_memory, check_fit
from sfumato.checkpoints.source import open_source, shapes_of
from sfumato.errors import WeightsMismatchError
from sfumato.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig

#: The number of layers in front of diffusers' first.
_BEFORE = {"encoder": 0, "decoder": 1}
_LAYER = re.compile(r"(\d{1,3})\.(conv\.\d\.)?(weight|bias)")


def load_taesd(
    decoder: str | PathLike[str],
    encoder: str | PathLike[str] | None = None,
    *,
    dtype: torch.dtype | None = torch.float32,
) -> AutoencoderTiny:
    """Load the two files; see `AutoencoderTiny.from_taesd`."""
    paths = {"decoder": decoder, "encoder": decoder if encoder is None else encoder}
    tensors: dict[str, Tensor] = {}
    fields: dict[str, Any] = {}
    for half, path in paths.items():
        source = open_source(checked_path(path))
        alone = half == "decoder" or encoder is not None
        names = _layer_names(shapes_of(source), half, alone=alone)
        if not names:
            raise WeightsMismatchError(
                f"{source.where} holds no {half} of TAESD.",
                hint="Both are needed, often in two files: from_taesd(decoder, encoder).",
            )
        fields |= _fields({new: source.tensors[old].shape for old, new in names.items()}, half)
        tensors |= {names[old]: t for old, t in source.read(names, dtype=dtype).items()}
    model = build_without_memory(AutoencoderTiny, AutoencoderTinyConfig.from_dict(fields))
    where = f"The TAESD of {', '.join(sorted({str(path)[-80:] for path in paths.values()}))}"
    check_fit(model, {name: tuple(t.shape) for name, t in tensors.items()}, where)
    assign(model, tensors, where)
    return model


def _layer_names(shapes: Mapping[str, Shape], half: str, *, alone: bool) -> dict[str, str]:
    """Names in a file, which may hold both halves or one, with diffusers' names for them."""
    prefixes = [f"taesd_{half}.", f"{half}."] + [""] * alone
    for prefix in prefixes:
        found = {}
        for name in shapes:
            match = _LAYER.fullmatch(name.removeprefix(prefix))
            if match and name.startswith(prefix) and int(match[1]) >= _BEFORE[half]:
                number, rest = match[0].split(".", 1)
                found[name] = f"{half}.layers.{int(number) - _BEFORE[half]}.{rest}"
        if found:
            return found
    return {}


def _fields(shapes: Mapping[str, Shape], half: str) -> dict[str, Any]:
    """The configuration that the shapes of one half tell: widths, and blocks per resolution."""
    layers: dict[int, list[str]] = {}
    for name in shapes:
        _, _, number, rest = name.split(".", 3)
        layers.setdefault(int(number), []).append(rest)
    order = sorted(layers)
    first, last = (shapes.get(f"{half}.layers.{n}.weight", ()) for n in (order[0], order[-1]))
    if len(first) != 4 or len(last) != 4:
        raise WeightsMismatchError(f"The {half} does not begin and end with convolutions.")
    counts = [0]
    for number in order[1:-1]:
        if "weight" in layers[number]:  # a convolution between two resolutions
            counts.append(0)
        else:
            counts[-1] += 1
    names = ("in_channels", "latent_channels")
    if half == "decoder":
        names = ("latent_channels", "out_channels")
    return {
        names[0]: first[1],
        names[1]: last[0],
        f"{half}_block_out_channels": (first[0],) * len(counts),
        f"num_{half}_blocks": tuple(counts),
    }
