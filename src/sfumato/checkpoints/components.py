"""The components of a pipeline's folder: loaded by their index, saved with one.

    index = read_model_index(path)
    parts = load_components(index, required={"unet", ...}, optional={"safety_checker", ...})
    save_components(path, parts, class_name="StableDiffusionPipeline")

What is a network, a tokenizer or a scheduler follows from the closed table in ``classes.py``.
Components of other libraries that the user made (a text encoder of transformers, say) are saved by
their own ``save_pretrained``.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfumato.checkpoints.arguments import chosen_dtype
from sfumato.checkpoints.atomic import atomic_directory
from sfumato.checkpoints.classes import CLASSES, LEFT_OUT, class_entry, find_class
from sfumato.checkpoints.files import checked_path, require_inside, shown
from sfumato.checkpoints.folders import (
    DIFFUSERS_VERSION,
    load_model,
    read_config,
    save_model,
    subfolder_of,
)
from sfumato.checkpoints.jsonfile import write_json
from sfumato.checkpoints.model_index import INDEX_NAME, ModelIndex
from sfumato.checkpoints.weight_files import (
    base_names,
    check_variant,
    has_variant,
    obsolete_weights,
)
from sfumato.errors import ConfigError, InputError, ModelNotFoundError, did_you_mean

logger = logging.getLogger(__name__)

SCHEDULER_CONFIG = "scheduler_config.json"

Dtype = torch.dtype | str
DtypeByName = Mapping[str, Dtype]


def load_components(
    index: ModelIndex,
    *,
    required: Collection[str],
    optional: Collection[str] = (),
    given: Mapping[str, Any] | None = None,
    torch_dtype: Dtype | DtypeByName | None = None,
    variant: str | None = None,
    class_name: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Load what a pipeline needs, in the order of the index.

    Args:
        index: of the folder.
        required: names that must be in the folder or in ``given``.
        optional: names that may be absent; they are ``None`` then, and when this version does not
            run their class (one line is logged).
        given: components that the user brings, ``None`` included; these are not loaded.
        torch_dtype: for all networks, or by name with ``"default"`` for the others.
        variant: such as ``"fp16"``. Networks without files of it are loaded from the plain ones,
            with a warning; when no network has any, that is an error.
        class_name: of the pipeline, for messages; default the index's.
        options: ``use_safetensors``, ``device``, ``check_finite``, ``disable_mmap`` of
            `load_model`.

    Returns:
        All names of ``required`` and ``optional`` with their components.

    Raises:
        InputError: (a ``ValueError``) something required is missing, no file has the variant, or
            ``torch_dtype`` names no component.
        ConfigError, CheckpointError: as `load_component`.
    """
    given = dict(given or {})
    dtypes = _dtypes(torch_dtype, {*required, *optional, *index.components})
    wanted = [n for n in index.components if (n in required or n in optional) and n not in given]
    left_out = {
        name: index.components[name][1]
        for name in index.components
        if name not in given and (name not in wanted or index.components[name][1] in LEFT_OUT)
    }
    left_out = {name: kind for name, kind in left_out.items() if kind is not None}
    _require_variant(index, [n for n in wanted if n not in left_out], variant)
    loaded: dict[str, Any] = {}
    for name in wanted:
        if name not in left_out:
            dtype = dtypes.get(name, dtypes["default"])
            loaded[name] = load_component(
                index,
                name,
                torch_dtype=dtype,
                variant=variant,
                variant_fallback=True,
                **options,
            )
    if left_out:
        logger.warning(
            "Left out of %s: %s. This version does not run %s.",
            shown(index.root),
            ", ".join(f"{name} ({kind})" for name, kind in left_out.items()),
            "it" if len(left_out) == 1 else "them",
        )
    found = {**loaded, **given}
    missing = [name for name in required if name not in found]
    if missing:
        raise InputError(
            f"Pipeline {class_name or index.class_name} expected "
            f"{sorted({*required, *optional})}, but only {sorted(found)} were passed.",
            hint=f"The folder {shown(index.root)} has no `{missing[0]}`.",
        )
    return {
        name: found.get(name)
        for name in [*index.components, *required, *optional]
        if name in required or name in optional
    }


def load_component(index: ModelIndex, name: str, **options: Any) -> Any:
    """Load one component, or ``None`` when the index says that there is none.

    Args:
        index: of the folder.
        name: such as ``"unet"``; also the name of its folder.
        options: as of `load_model`; tokenizers and schedulers need none of them.

    Raises:
        ConfigError: (a ``ValueError``) the index does not have the name, the class is not in the
            table, or a configuration is wrong.
        CheckpointError: (an ``OSError``) files are missing, damaged or unsafe.
    """
    if name not in index.components:
        raise ConfigError(
            f"{shown(index.root / INDEX_NAME)} has no `{name[:80]}`."
            f"{did_you_mean(name, index.components)}"
        )
    kind = index.components[name][1]
    if kind is None:
        return None
    found = find_class(kind, f"`{name}` in {shown(index.root / INDEX_NAME)}")
    folder = subfolder_of(index.root, index.root, name)
    if issubclass(found, nn.Module):
        component = load_model(found, index.root, subfolder=name, root=index.root, **options)
    elif CLASSES[found.__name__][0] == "transformers":
        for file in folder.iterdir():
            require_inside(file, index.root)
        component = found.from_pretrained(folder)
    else:
        component = found.from_config(read_config(folder, SCHEDULER_CONFIG, index.root))
    logger.info(
        "Loaded %s as %s from `%s` subfolder of %s.", name, found.__name__, name, index.root
    )
    return component


def save_components(
    path: str | PathLike[str],
    components: Mapping[str, Any],
    *,
    class_name: str,
    settings: Mapping[str, Any] | None = None,
    safe_serialization: bool = True,
    variant: str | None = None,
    max_shard_size: int | str | None = None,
) -> None:
    """Write a pipeline's folder: every component in its own, and ``model_index.json``.

    All files are written beside the folder first and then renamed into it, so an exception (a full
    disk, say) leaves what was there.

    Args:
        path: the folder; made when missing.
        components: by name; ``None`` for absent ones.
        class_name: of the pipeline.
        settings: further entries of the index, such as ``requires_safety_checker``.
        safe_serialization, variant, max_shard_size: as of `save_model`.

    Raises:
        InputError: a component cannot be saved.
        OSError: the disk refuses.
    """
    check_variant(variant)
    weights = {"safe_serialization": safe_serialization, "variant": variant}
    if max_shard_size is not None:
        weights["max_shard_size"] = max_shard_size
    index: dict[str, Any] = {name: list(class_entry(part)) for name, part in components.items()}
    index |= {"_class_name": class_name, "_diffusers_version": DIFFUSERS_VERSION}
    index |= dict(settings or {})
    with atomic_directory(checked_path(path), obsolete=obsolete_weights) as temporary:
        for name, part in components.items():
            if part is not None:
                _save_component(part, temporary / name, name, weights)
        write_json(temporary / INDEX_NAME, index)


def save_scheduler(scheduler: Any, path: str | PathLike[str]) -> None:
    """Write ``scheduler_config.json`` for an object with a configuration like diffusers'."""
    values = {k: v for k, v in _plain(scheduler.config).items() if not k.startswith("_")}
    values |= {"_class_name": type(scheduler).__name__, "_diffusers_version": DIFFUSERS_VERSION}
    with atomic_directory(checked_path(path)) as temporary:
        write_json(temporary / SCHEDULER_CONFIG, values)


def _plain(config: Any) -> dict[str, Any]:
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def _save_component(part: Any, folder: Path, name: str, weights: Mapping[str, Any]) -> None:
    network = isinstance(part, nn.Module)
    save: Any = getattr(part, "save_pretrained", None)
    if network and type(part).__module__.startswith("sfumato."):
        save_model(part, folder, **weights)
    elif save is not None:
        save(folder, **(weights if network else {}))
    elif hasattr(part, "config"):
        save_scheduler(part, folder)
    else:
        raise InputError(f"`{name}` cannot be saved: {type(part).__name__} has no configuration.")


def _dtypes(
    given: Dtype | DtypeByName | None, known: Collection[str]
) -> dict[str, torch.dtype | str]:
    """Component name to dtype, with ``"default"``."""
    if not isinstance(given, Mapping):
        return {"default": chosen_dtype(given, None) or "auto"}
    for name in given:
        if name != "default" and name not in known:
            raise InputError(
                f"`torch_dtype` has an entry for {str(name)[:80]!r}, which is no component."
                f"{did_you_mean(str(name), known)}"
            )
    table = {name: chosen_dtype(dtype, None) or "auto" for name, dtype in given.items()}
    return {"default": torch.float32, **table}


def _require_variant(index: ModelIndex, names: Collection[str], variant: str | None) -> None:
    """Raise when no network of the folder has files of the variant."""
    check_variant(variant)
    if variant is None:
        return
    networks = []
    for name in names:
        kind = index.components[name][1]
        found = find_class(kind, f"`{name}`") if kind is not None else None
        if found is not None and issubclass(found, nn.Module):
            networks.append((index.root / name, base_names(found)))
    if networks and not any(has_variant(folder, bases, variant) for folder, bases in networks):
        raise ModelNotFoundError(
            f"You are trying to load the model files of the `variant={variant}`, but no such "
            "modeling files are available.",
            hint="Leave out `variant` to load the plain files.",
        )
