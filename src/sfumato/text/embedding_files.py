"""Files of textual inversion embeddings: a name for the token, and the vectors it stands for.

``textual_inversion.py`` puts what is read here into a tokenizer and a text encoder. A file is told
by its content: safetensors, a torch pickle, or a PNG that A1111 wrote. Known layouts are

- one tensor, whose key is the token (diffusers, ``emb_params``),
- ``string_to_param`` beside a ``name`` (A1111, and the first implementation of the method),
- a bare tensor, which has no name.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.files import open_regular, shown
from sfumato.checkpoints.find_file import Wanted, find_file
from sfumato.checkpoints.hub_names import HubOptions
from sfumato.checkpoints.jsonfile import parse_json
from sfumato.checkpoints.pickles import load_tensors
from sfumato.checkpoints.png import SIGNATURE, read_texts
from sfumato.checkpoints.tensors import read_safetensors
from sfumato.checkpoints.torch_file import ZIP_START, read_torch_file, table_of
from sfumato.checkpoints.torch_rebuild import StoredTensor
from sfumato.errors import CheckpointError, InputError, printable

_WANTED = Wanted(stems=("learned_embeds",))

#: The text chunk in which A1111 keeps an embedding in its preview picture.
_PNG_KEYWORD = "sd-ti-embedding"

#: No prompt has room for more.
_MOST_VECTORS = 10_000


@dataclass(frozen=True)
class Embedding:
    """What one file holds.

    Attributes:
        token: the name in the file, if it has one.
        vectors: ``(n, width)``, floating-point and finite.
        where: names the file in messages.
    """

    token: str | None
    vectors: Tensor
    where: str


def read_embedding(
    source: str | PathLike[str] | Mapping[str, Any] | Tensor,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    use_safetensors: bool | None = None,
    hub: HubOptions | None = None,
) -> Embedding:
    """Read one embedding from a file, a folder, the hub, a dictionary or a tensor.

    Args:
        source: of a folder, or a model on the hub (``owner/name``), ``learned_embeds.safetensors``
            is taken, then ``learned_embeds.bin``, then the only file of weights there is.
        weight_name: the file's name in the folder.
        subfolder: a folder in the folder.
        use_safetensors: None prefers safetensors, True insists on them, False takes pickles.
        hub: how to ask the hub.

    Raises:
        ModelNotFoundError: (an ``OSError`` and ``ValueError``) there is no such file.
        HubError: (an ``OSError``) the hub cannot be reached, or refuses.
        CheckpointError: (an ``OSError``) the file is damaged or unsafe.
        InputError: (a ``ValueError``) it holds no embedding, or several.
    """
    if isinstance(source, Tensor):
        return _checked(None, source, "The tensor")
    if isinstance(source, Mapping):
        return _from_content(source, "The dictionary", None, lambda tensor: tensor)
    if not isinstance(source, str | PathLike):
        raise InputError(
            "An embedding has to be a path, a dictionary or a tensor but is "
            f"{type(source).__name__}."
        )
    path = find_file(
        source,
        _WANTED,
        hub,
        weight_name=weight_name,
        subfolder=subfolder,
        use_safetensors=use_safetensors,
    )
    return _from_file(path)


def _from_file(path: Path) -> Embedding:
    with open_regular(path) as file:
        start = file.read(16)
    where, stem = shown(path), path.stem
    if start.startswith(SIGNATURE):
        return _from_content(_png_content(path), where, stem, lambda tensor: tensor)
    if start.startswith(ZIP_START) or (start.startswith(b"\x80") and start[8:9] != b"{"):
        pickled = read_torch_file(path)
        return _from_content(
            pickled.content,
            where,
            stem,
            lambda tensor: load_tensors(pickled, {"embedding": tensor})["embedding"],
        )
    return _from_content(read_safetensors(path), where, stem, lambda tensor: tensor)


def _from_content(
    content: Any, where: str, stem: str | None, load: Callable[[Any], Tensor]
) -> Embedding:
    """The embedding in a file's table, or in the tensor that is all there is.

    Args:
        stem: of the file's name, the token where A1111's layout has no name.
        load: makes a tensor of what stands for one.
    """
    table = table_of(content)
    token: Any = None
    if table is None:
        value = content
    elif "string_to_param" in table:
        value = _only_parameter(table_of(table["string_to_param"]), where)
        token = table.get("name") or stem
    elif {"clip_l", "clip_g"} <= set(table):
        raise InputError(
            f"{where} is an embedding for Stable Diffusion XL, with vectors for its two text"
            " encoders (`clip_l` and `clip_g`).",
            hint="Use one that was made for Stable Diffusion 1.x or 2.x.",
        )
    elif len(table) == 1:
        token, value = next(iter(table.items()))
    else:
        keys = ", ".join(printable(key, 40) for key in list(table)[:5]) or "nothing"
        raise InputError(
            f"Loaded state dictionary is incorrect: {where} holds {keys}. The state dictionary of a"
            " textual embedding either only has a single key or includes the `string_to_param`"
            " input key."
        )
    if not isinstance(value, Tensor | StoredTensor):
        raise InputError(f"{where} holds no tensor where the embedding should be.")
    return _checked(token, load(value), where)


def _only_parameter(parameters: Mapping[Any, Any] | None, where: str) -> Any:
    parameters = parameters or {}
    if "*" in parameters:
        return parameters["*"]
    if len(parameters) != 1:
        raise InputError(
            f"{where} has {len(parameters)} embeddings in `string_to_param`; one is needed, or one"
            " under the key `*`."
        )
    return next(iter(parameters.values()))


def _checked(token: Any, vectors: Tensor, where: str) -> Embedding:
    if token is not None and not isinstance(token, str):
        raise InputError(f"{where} has a token that is no text but {type(token).__name__}.")
    if vectors.ndim == 1:
        vectors = vectors[None]
    if vectors.ndim != 2 or 0 in vectors.shape or not vectors.is_floating_point():
        raise InputError(
            f"{where} holds a {vectors.dtype} tensor of shape {tuple(vectors.shape)}; an embedding"
            " has floating-point numbers and the shape (width,) or (vectors, width)."
        )
    if len(vectors) > _MOST_VECTORS:
        raise InputError(f"{where} holds {len(vectors)} vectors; {_MOST_VECTORS} are the limit.")
    if not vectors.is_meta and not bool(torch.isfinite(vectors).all()):
        raise InputError(f"{where} holds NaN or infinite numbers.")
    return Embedding(token, vectors.detach(), where)


# Pictures


def _png_content(path: Path) -> Mapping[str, Any]:
    text = read_texts(path, (_PNG_KEYWORD,)).get(_PNG_KEYWORD)
    if text is None:
        raise InputError(
            f"{shown(path)} is a picture without an embedding in its text.",
            hint="Use the .pt or .safetensors file that belongs to it.",
        )
    try:
        decoded = base64.b64decode(text, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        raise CheckpointError(f"{shown(path)} has a damaged embedding.") from None
    content = parse_json(decoded, f"The embedding in {shown(path)}")
    parameters = content.get("string_to_param")
    if not isinstance(parameters, dict):
        raise CheckpointError(f"{shown(path)} has an embedding without vectors.")
    tensors = {
        key: _listed_numbers(value.get("TORCHTENSOR"), path)
        for key, value in parameters.items()
        if isinstance(value, dict)
    }
    return {"string_to_param": tensors, "name": content.get("name")}


def _listed_numbers(value: Any, path: Path) -> Tensor:
    try:
        return torch.tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise CheckpointError(
            f"{shown(path)} has an embedding that is no table of numbers."
        ) from None
