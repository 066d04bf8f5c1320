"""Reading a file of adapters: by path, from a folder or the hub, or a dictionary of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.checkpoints.files import is_regular, shown
from sfumato.checkpoints.find_file import Wanted, find_file
from sfumato.checkpoints.header import read_header
from sfumato.checkpoints.hub_names import take_hub_options
from sfumato.checkpoints.jsonfile import parse_json, read_json
from sfumato.checkpoints.keywords import reject_unknown, without_hub_keywords
from sfumato.checkpoints.pickles import read_pickle
from sfumato.checkpoints.tensors import read_safetensors
from sfumato.errors import AdapterError, ConfigError

#: Where a safetensors file's metadata keeps PEFT's configuration, as JSON.
METADATA_KEY = "lora_adapter_metadata"

WEIGHT_NAME = "pytorch_lora_weights"
_PEFT_NAME = "adapter_model"
_PEFT_CONFIG = "adapter_config.json"
#: How files of adapters are named.
ADAPTER_FILES = Wanted(
    stems=(WEIGHT_NAME, _PEFT_NAME),
    others=("scheduler", "optimizer", "checkpoint", "random_states"),  # of a training run
    beside=(_PEFT_CONFIG,),
)


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
        source: a file, a folder with one, the name of a model on the hub (``owner/name``), the
            address of a file there, or the tensors themselves.
        weight_name: the file's name in the folder; default ``pytorch_lora_weights.safetensors``,
            then PEFT's ``adapter_model.safetensors``, then the only file there is.
        subfolder: a folder in the folder.
        use_safetensors: None prefers safetensors, True insists on them, False reads pickles.
        kwargs: how to ask the hub: ``revision``, ``cache_dir``, ``token``, ``proxies``,
            ``force_download``, ``local_files_only``.

    Raises:
        ModelNotFoundError: (an ``OSError`` and ``ValueError``) there is no such file.
        HubError: (an ``OSError``) the hub cannot be reached, or refuses.
        CheckpointError: (an ``OSError``) the file is damaged or unsafe.
        AdapterError: (also a ``ValueError``) it holds no tensors.
    """
    hub = take_hub_options(kwargs)
    kwargs = without_hub_keywords(kwargs)
    reject_unknown("load_lora_weights()", kwargs, {"weight_name", "subfolder", "use_safetensors"})
    if isinstance(source, Mapping):
        for key, tensor in source.items():
            if not isinstance(key, str) or not isinstance(tensor, Tensor):
                raise AdapterError(f"{str(key)[:80]!r} in the state dict is no tensor with a name.")
        return AdapterFile(dict(source))
    path = find_file(
        source,
        ADAPTER_FILES,
        hub,
        weight_name=weight_name,
        subfolder=subfolder,
        use_safetensors=use_safetensors,
    )
    if path.suffix in ADAPTER_FILES.pickles:
        return AdapterFile(read_pickle(path), _peft_config(path), shown(path))
    metadata = _metadata(read_header(path).metadata, shown(path)) or _peft_config(path)
    return AdapterFile(read_safetensors(path), metadata, shown(path))


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
    config = path.with_name(_PEFT_CONFIG)
    if path.stem != _PEFT_NAME or not is_regular(config):
        return {}
    return read_json(config)


def metadata_for(metadata: Mapping[str, Any], network: str) -> dict[str, Any]:
    """The part of a configuration about one network: with its prefix, or with none at all."""
    start = f"{network}."
    own = {k.removeprefix(start): v for k, v in metadata.items() if k.startswith(start)}
    return own or {k: v for k, v in metadata.items() if "." not in k}
