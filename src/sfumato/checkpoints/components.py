"""The components of a pipeline's folder: each loaded by its class's name, all saved at once.

    index = read_model_index(path)
    unet = load_component(index, "unet", torch_dtype=torch.bfloat16)
    save_components(path, {"unet": unet}, index={"_class_name": "StableDiffusionPipeline"})

Which components a pipeline needs is the pipeline's business; see `sfumato.pipelines.storage`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from sfumato.checkpoints.atomic import atomic_directory
from sfumato.checkpoints.classes import class_entry, find_class
from sfumato.checkpoints.files import checked_path, require_inside, shown
from sfumato.checkpoints.folders import DIFFUSERS_VERSION, load_model
from sfumato.checkpoints.hub import HubModel
from sfumato.checkpoints.hub_files import joined, network_files, tokenizer_files
from sfumato.checkpoints.jsonfile import write_json
from sfumato.checkpoints.model_index import INDEX_NAME, ModelIndex
from sfumato.checkpoints.places import subfolder_of
from sfumato.checkpoints.several import folder_names, load_several, surplus
from sfumato.checkpoints.weight_files import base_names, check_variant, obsolete_weights
from sfumato.errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)


def load_component(index: ModelIndex, name: str, **options: Any) -> Any:
    """Load one component, or ``None`` when the index says that there is none.

    Args:
        index: of the folder.
        name: such as ``"unet"``; also the name of its folder.
        options: as of `load_model`; tokenizers and schedulers need none of them.

    Raises:
        ConfigError: (a ``ValueError``) the index does not have the name, the class is not in the
            table, or a configuration is wrong.
        CheckpointError: (an ``OSError``) files are missing, damaged, unsafe, or outside the folder.
    """
    where = shown(index.root / INDEX_NAME)
    if name not in index.components:
        known = did_you_mean(name, index.components)
        raise ConfigError(f"{where} has no component {name[:80]!r}.{known}")
    kind = index.components[name][1]
    if kind is None:
        return None
    component_class = find_class(kind, f"`{name}` in {where}")
    folder = subfolder_of(index.root, index.root, name)
    if issubclass(component_class, nn.Module):
        load = load_several if hasattr(component_class, "member_class") else load_model
        component = load(component_class, index.root, subfolder=name, root=index.root, **options)
    else:
        for file in folder.iterdir():
            require_inside(file, index.root)
        component = component_class.from_pretrained(index.root, subfolder=name)
    logger.info(
        "Loaded %s as %s from `%s` subfolder of %s.", name, kind, name, ascii(str(index.root))[1:-1]
    )
    return component


def files_of_component(
    model: HubModel,
    name: str,
    component_class: type[Any],
    *,
    variant: str | None = None,
    use_safetensors: bool | None = None,
) -> list[str]:
    """The files that `load_component` needs of a model on the hub.

    Raises:
        SfumatoError: one of them is not there.
    """
    if issubclass(component_class, nn.Module):
        several = hasattr(component_class, "member_class")
        files = (
            network_files(
                model,
                folder,
                base_names(component_class),
                variant=variant,
                use_safetensors=use_safetensors,
                fall_back=True,
            )
            for folder in (folder_names(name, model.has) if several else [name])
        )
        return [file for own in files for file in own]
    if hasattr(component_class, "config_name"):
        return [joined(name, component_class.config_name)]
    return tokenizer_files(model, name)


def save_components(
    path: str | PathLike[str],
    components: Mapping[str, Any],
    *,
    index: Mapping[str, Any],
    safe_serialization: bool = True,
    variant: str | None = None,
    max_shard_size: int | str | None = None,
) -> None:
    """Write a pipeline's folder: every component in its own, and ``model_index.json``.

    All files are written beside the folder first and then renamed into it, so an exception (a full
    disk, say) leaves what was there.

    Args:
        path: the folder; made when missing.
        components: by name; ``None`` for absent ones. One of another library is saved by its own
            ``save_pretrained``; one that has none is left out with a warning.
        index: what ``model_index.json`` says besides: ``_class_name``, settings.
        safe_serialization, variant, max_shard_size: as of `save_model`, for networks.

    Raises:
        InputError: an argument is wrong.
        OSError: the disk refuses.
    """
    check_variant(variant)
    given = {
        "safe_serialization": safe_serialization,
        "variant": variant,
        "max_shard_size": max_shard_size,
    }
    options = {name: value for name, value in given.items() if value is not None}
    entries: dict[str, Any] = {}

    def obsolete(new: Path, old: Path) -> Iterator[Path]:
        yield from obsolete_weights(new, old)
        for name, component in components.items():
            if hasattr(component, "members"):
                yield from surplus(old / name, len(component.members))

    with atomic_directory(checked_path(path), obsolete=obsolete) as temporary:
        for name, component in components.items():
            save = getattr(component, "save_pretrained", None)
            entries[name] = [None, None] if save is None else list(class_entry(component))
            if save is not None:
                accepted = inspect.signature(save).parameters
                save(temporary / name, **{k: v for k, v in options.items() if k in accepted})
            elif component is not None:
                logger.warning("`%s` has no `save_pretrained` and is not saved.", name)
        written = {**index, "_diffusers_version": DIFFUSERS_VERSION, **entries}
        write_json(temporary / INDEX_NAME, written)
