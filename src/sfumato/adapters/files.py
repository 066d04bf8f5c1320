"""Finding and reading a file of adapters: a path, a folder, or a dictionary of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.checkpoints.arguments import reject_unknown, without_hub_keywords
from sfumato.checkpoints.files import checked_path, is_regular, shown
from sfumato.checkpoints.header import read_header
from sfumato.checkpoints.jsonfile import parse_json, read_json
from sfumato.checkpoints.pickles import read_pickle
from sfumato.checkpoints.tensors import read_safetensors
from sfumato.errors import AdapterError, ConfigError, InputError, ModelNotFoundError

#: Where a safetensors file's metadata keeps PEFT's configuration, as JSON.
METADATA_KEY = "lora_adapter_metadata"

WEIGHT_NAME = "pytorch_lora_weights"
_DEFAULT_NAMES = (WEIGHT_NAME, "adapter_model")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
#: Files of a training run that are no adapters.
_NOT_ADAPTERS = ("scheduler", "optimizer", "checkpoint", "random_states")


@dataclass(frozen=True)
class AdapterFile:
    """What was read: tensors in the file's naming, PEFT's configuration, and where it came from."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    where: str = "The state dict"


def read_adapter_file(
    source: str | PathLike[str] | Mapping[str, Tensor],
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    use_safetensors: bool | None = None,
    **kwargs: Any,
) -> AdapterFile:
    """Read a file of adapters; every check of `sfumato.checkpoints` is made.

    Args:
        source: a file, a folder with one, or the tensors themselves.
        weight_name: the file's name in the folder; default ``pytorch_lora_weights.safetensors``,
            then PEFT's ``adapter_model.safetensors``, then the only file there is.
        subfolder: a folder in the folder.
        use_safetensors: None prefers safetensors, True insists on them, False reads pickles.
        kwargs: keywords about downloading, which have no effect.

    Raises:
        ModelNotFoundError: (an ``OSError`` and ``ValueError``) there is no such file.
        CheckpointError: (an ``OSError``) the file is damaged or unsafe.
        AdapterError: (also a ``ValueError``) it holds no tensors.
    """
    kwargs = without_hub_keywords(kwargs)
    reject_unknown("load_lora_weights()", kwargs, {"weight_name", "subfolder", "use_safetensors"})
    if isinstance(source, Mapping):
        for key, tensor in source.items():
            if not isinstance(key, str) or not isinstance(tensor, Tensor):
                raise AdapterError(f"{str(key)[:80]!r} in the state dict is no tensor with a name.")
        return AdapterFile(dict(source))
    path = _find_file(checked_path(source), weight_name, subfolder, use_safetensors)
    if path.suffix in _PICKLES:
        return AdapterFile(read_pickle(path), _peft_config(path), shown(path))
    metadata = _metadata(read_header(path).metadata, shown(path)) or _peft_config(path)
    return AdapterFile(read_safetensors(path), metadata, shown(path))


def _find_file(
    path: Path, weight_name: str | None, subfolder: str | None, use_safetensors: bool | None
) -> Path:
    if is_regular(path):
        return path
    try:
        is_folder = path.is_dir()
    except OSError:
        is_folder = False
    if not is_folder:
        raise ModelNotFoundError(f"There is no file or folder {shown(path)} on this machine.")
    folder = path
    for part in (subfolder, weight_name):
        if part is not None and (".." in Path(part).parts or checked_path(part).is_absolute()):
            raise InputError(f"{shown(part)} is no name of something in {shown(path)}.")
    folder = path / subfolder if subfolder else path
    if weight_name is not None:
        if not is_regular(folder / weight_name):
            raise ModelNotFoundError(f"{shown(folder)} has no file {shown(weight_name)}.")
        return folder / weight_name
    endings = {None: (".safetensors", *_PICKLES), True: (".safetensors",), False: _PICKLES}
    for ending in endings[use_safetensors]:
        for name in _DEFAULT_NAMES:
            if is_regular(folder / f"{name}{ending}"):
                return folder / f"{name}{ending}"
    return _only_file(folder, endings[use_safetensors])


def _only_file(folder: Path, endings: tuple[str, ...]) -> Path:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for kinds in (endings[:1], endings[1:]):
        there = [
            file
            for file in files
            if file.suffix in kinds
            and not any(word in file.name for word in _NOT_ADAPTERS)
            and is_regular(file)
        ]
        if len(there) > 1:
            names = ", ".join(file.name[:80] for file in there[:5])
            raise ModelNotFoundError(
                f"{shown(folder)} has several files: {names}.",
                hint="Say which with `weight_name`.",
            )
        if there:
            return there[0]
    raise ModelNotFoundError(f"{shown(folder)} has no file that ends in {' or '.join(endings)}.")


def _metadata(texts: Mapping[str, str], where: str) -> dict[str, Any]:
    text = texts.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        return parse_json(text, f"The metadata of {where}")
    except ConfigError as error:
        raise AdapterError(error.message) from None


def _peft_config(path: Path) -> dict[str, Any]:
    """The configuration beside a file saved by PEFT itself."""
    config = path.with_name("adapter_config.json")
    if path.stem != "adapter_model" or not is_regular(config):
        return {}
    return read_json(config)


def metadata_for(metadata: Mapping[str, Any], network: str) -> dict[str, Any]:
    """The part of a configuration about one network: with its prefix, or with none at all."""
    start = f"{network}."
    own = {k.removeprefix(start): v for k, v in metadata.items() if k.startswith(start)}
    return own or {k: v for k, v in metadata.items() if "." not in k}
