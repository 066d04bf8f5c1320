"""Finding and reading the files of IP-Adapters, and where their image encoder lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from sfumato.checkpoints.files import is_regular, shown
from sfumato.checkpoints.find_file import Wanted, find_file
from sfumato.checkpoints.hub_files import joined
from sfumato.checkpoints.hub_names import HubOptions, hub_file
from sfumato.checkpoints.pickles import read_pickled
from sfumato.checkpoints.recognise import what_weights_look_like
from sfumato.checkpoints.tensors import read_safetensors
from sfumato.errors import AdapterError, InputError
from sfumato.pipelines.ip_adapter_keys import Tables, split_tables

#: A file or folder, a model's name on the hub, or the tensors themselves.
Source = str | PathLike[str] | Mapping[str, Any]

_WANTED = Wanted(stems=("ip_adapter", "ip-adapter"))


@dataclass(frozen=True)
class Wish:
    """One adapter that is asked for: a source, and where in it."""

    source: Source
    subfolder: str | None
    weight_name: str | None


def read_wishes(source: Any, subfolder: Any, weight_name: Any) -> list[Wish]:
    """The arguments of ``load_ip_adapter``, each one for all or a list, as one wish per adapter.

    Raises:
        InputError: the lists have different lengths, or an entry is no text.
    """
    names = weight_name if isinstance(weight_name, list) else [weight_name]
    sources = source if isinstance(source, list) else [source]
    folders = subfolder if isinstance(subfolder, list) else [subfolder]
    sources = sources * len(names) if len(sources) == 1 else sources
    folders = folders * len(names) if len(folders) == 1 else folders
    if len(names) != len(sources):
        raise InputError(
            "`weight_name` and `pretrained_model_name_or_path_or_dict` must have the same length."
        )
    if len(names) != len(folders):
        raise InputError("`weight_name` and `subfolder` must have the same length.")
    if not names:
        raise InputError("`weight_name` is an empty list.")
    for label, values in (("weight_name", names), ("subfolder", folders)):
        for value in values:
            if value is not None and not isinstance(value, str | PathLike):
                raise InputError(f"`{label}` has to be text but is {type(value).__name__}.")
    for value in sources:
        if not isinstance(value, str | PathLike | Mapping):
            raise InputError(
                "`pretrained_model_name_or_path_or_dict` has to be a path, a name or a dictionary"
                f" but is {type(value).__name__}."
            )
    return [Wish(s, f, n) for s, f, n in zip(sources, folders, names, strict=True)]


def read_tables(wish: Wish, hub: HubOptions) -> list[Tables]:
    """Read the adapters in a file or dictionary; every check of `sfumato.checkpoints` is made.

    Raises:
        ModelNotFoundError: (an ``OSError`` and ``ValueError``) there is no such file.
        CheckpointError: (an ``OSError``) the file is damaged or unsafe.
        AdapterError: (also a ``ValueError``) it is no IP-Adapter.
    """
    if isinstance(wish.source, Mapping):
        return split_tables(wish.source, "The state dict")
    path = find_file(
        wish.source,
        _WANTED,
        hub,
        weight_name=wish.weight_name or None,
        subfolder=wish.subfolder or None,
    )
    content = read_pickled(path) if path.suffix in _WANTED.pickles else read_safetensors(path)
    if not isinstance(content, Mapping):
        raise AdapterError(f"{shown(path)} holds no table of tensors.")
    try:
        return split_tables(content, shown(path))
    except AdapterError as error:
        shapes = {str(k): tuple(t.shape) for k, t in content.items() if isinstance(t, Tensor)}
        guess = what_weights_look_like(shapes)
        if guess is None or "IP-Adapter" in guess:
            raise
        raise AdapterError(
            f"{shown(path)}: {error.message}", hint=f"The file looks like {guess}."
        ) from None


def encoder_place(wish: Wish, folder: str) -> tuple[str | Path, str, str | None]:
    """Where the image encoder of an adapter is: a folder or model, the folder in it, a revision.

    A name is taken beside the adapter's file, a path with slashes from the top.

    Raises:
        InputError: the adapter was given as a dictionary, which has no encoder.
    """
    if isinstance(wish.source, Mapping):
        raise InputError(
            "`image_encoder` cannot be loaded because `pretrained_model_name_or_path_or_dict` is a"
            " state dict.",
            hint="Pass `image_encoder_folder=None`, or load the pipeline with an `image_encoder`.",
        )
    beside = "/" not in folder
    if is_regular(wish.source):
        return Path(wish.source).parent, folder, None
    address = hub_file(wish.source)
    if address is not None:
        parent = PurePosixPath(address.file).parent.as_posix() if beside else None
        return address.name, joined(parent, folder), address.revision
    source = wish.source if isinstance(wish.source, str) else Path(wish.source)
    return source, joined(wish.subfolder if beside else None, folder), None
