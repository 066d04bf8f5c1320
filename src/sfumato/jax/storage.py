"""Pipelines as folders, for JAX: the layout is that of `sfumato.pipelines.storage`."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from sfumato import schedulers
from sfumato.checkpoints.atomic import atomic_directory
from sfumato.checkpoints.files import checked_path, is_regular, shown
from sfumato.checkpoints.hub import HubModel, local_copy
from sfumato.checkpoints.hub_files import joined, network_files, tokenizer_files
from sfumato.checkpoints.hub_names import HubOptions
from sfumato.checkpoints.jsonfile import write_json
from sfumato.checkpoints.model_index import INDEX_NAME, ModelIndex, read_model_index
from sfumato.checkpoints.places import read_config, subfolder_of
from sfumato.checkpoints.weight_files import base_names, require_variant
from sfumato.errors import ConfigError, InputError, did_you_mean
from sfumato.jax.mixin import FlaxModelMixin
from sfumato.jax.models import FlaxAutoencoderKL, FlaxCLIPTextModel, FlaxUNet2DConditionModel
from sfumato.jax.safety import FlaxStableDiffusionSafetyChecker
from sfumato.jax.schedulers import FlaxScheduler, functional
from sfumato.pipelines.repairs import repair_sample_size
from sfumato.safety.image_processor import CLIPImageProcessor
from sfumato.text.tokenizer import CLIPTokenizer

#: Networks by the names of a pipeline's components.
NETWORKS: dict[str, type[FlaxModelMixin[Any]]] = {
    "vae": FlaxAutoencoderKL,
    "text_encoder": FlaxCLIPTextModel,
    "unet": FlaxUNet2DConditionModel,
}
#: The classes that a folder may name for what a pipeline has to have.
_CLASSES: dict[str, tuple[str, ...]] = {
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "unet": ("UNet2DConditionModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": schedulers.CLASS_NAMES,
}
_DIFFUSERS_VERSION = "0.35.2"


def read_pipeline(
    path: str | PathLike[str],
    given: Mapping[str, Any],
    *,
    dtype: Any,
    variant: str | None,
    hub: HubOptions,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The components of a folder that the caller did not give, and the parameters.

    Args:
        path: the folder, or a name on the hub.
        given: components by name.
        dtype: in which the networks compute.
        variant: of the weight files.
        hub: how to ask the hub.

    Raises:
        SfumatoError: as `FlaxModelMixin.from_pretrained`.
    """
    wanted = [name for name in NETWORKS if name not in given]
    judge = "safety_checker"

    def needed(model: HubModel) -> list[str]:
        files = [INDEX_NAME]
        for name in wanted:
            files += network_files(
                model, folder=name, bases=base_names(NETWORKS[name]), variant=variant,
                use_safetensors=True, fall_back=True,
            )  # fmt: skip
        if judge not in given and model.has(f"{judge}/config.json"):
            files += network_files(
                model, folder=judge, bases=base_names(FlaxStableDiffusionSafetyChecker),
                variant=variant, use_safetensors=True, fall_back=True,
            )  # fmt: skip
            files.append("feature_extractor/preprocessor_config.json")
        if "tokenizer" not in given:
            files += tokenizer_files(model, "tokenizer")
        if "scheduler" not in given:
            files.append(joined("scheduler", "scheduler_config.json"))
        return files

    index = read_model_index(local_copy(path, hub, needed))
    _check_index(index, given)
    bases = {name: base_names(NETWORKS[name]) for name in wanted}
    require_variant(lambda file: is_regular(index.root / file), bases, variant)
    components, params = dict(given), {}
    for name in wanted:
        components[name], params[name] = NETWORKS[name].from_pretrained(
            index.root, dtype, subfolder=name, variant=variant
        )
    if "unet" in wanted:
        config = read_config(index.root / "unet", "config.json", index.root)
        version = str(config.get("_diffusers_version", ""))
        repair_sample_size(components["unet"], version)
    if judge not in given and index.components.get(judge, (None, None))[1] is not None:
        components[judge], params[judge] = FlaxStableDiffusionSafetyChecker.from_pretrained(
            index.root, subfolder=judge, variant=variant
        )
    if components.get(judge) is not None and "feature_extractor" not in given:
        components["feature_extractor"] = CLIPImageProcessor.from_pretrained(
            index.root, subfolder="feature_extractor"
        )
    if "tokenizer" not in components:
        subfolder_of(index.root, index.root, "tokenizer")
        components["tokenizer"] = CLIPTokenizer.from_pretrained(index.root, subfolder="tokenizer")
    if "scheduler" not in components:
        components["scheduler"] = _scheduler(index)
    return components, params


def _check_index(index: ModelIndex, given: Mapping[str, Any]) -> None:
    """What the folder says it has is all that is needed, and of classes that are known here.

    Raises:
        InputError: something is missing.
        ConfigError: a component is of another class.
    """
    needed = set(_CLASSES)
    if missing := needed - set(given) - set(index.components):
        raise InputError(
            f"The pipeline needs {sorted(needed)}, but {shown(index.root / INDEX_NAME)} lacks"
            f" {sorted(missing)}.",
            hint=f"Pass {', '.join(sorted(missing))} as keyword arguments.",
        )
    for name, known in _CLASSES.items():
        _, entry = index.components.get(name, (None, None))
        if name in given or (entry or "").removeprefix("Flax") in known:
            continue
        raise ConfigError(
            f"`{name}` in {shown(index.root / INDEX_NAME)} names the unknown class"
            f" {str(entry)[:80]!r}.{did_you_mean(str(entry)[:80], known)}",
            hint="Pass the component as a keyword argument.",
        )


def _scheduler(index: ModelIndex) -> FlaxScheduler:
    """The functional form of whichever scheduler the folder names."""
    name = (index.components["scheduler"][1] or "").removeprefix("Flax")
    subfolder_of(index.root, index.root, "scheduler")
    return functional(getattr(schedulers, name)).from_pretrained(index.root, "scheduler")[0]


def as_functional(scheduler: Any) -> FlaxScheduler:
    """A scheduler in its functional form, whichever form it came in.

    Raises:
        InputError: it is no scheduler of sfumato.
    """
    if isinstance(scheduler, FlaxScheduler):
        return scheduler
    if hasattr(type(scheduler), "config_class") and hasattr(scheduler, "plan"):
        return functional(type(scheduler)).of(scheduler)
    raise InputError(
        f"`scheduler` has to be a scheduler of sfumato but is {type(scheduler)}.",
        hint="For example FlaxDPMSolverMultistepScheduler.from_config(pipeline.scheduler.config).",
    )


def write_pipeline(
    path: str | PathLike[str], components: Mapping[str, Any], params: Mapping[str, Any]
) -> None:
    """Write a folder that every Stable Diffusion pipeline of sfumato and diffusers reads."""
    entries: dict[str, Any] = {}
    with atomic_directory(checked_path(path)) as folder:
        for name, component in components.items():
            entries[name] = _write(folder / name, component, params.get(name))
        written = {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": _DIFFUSERS_VERSION,
            "requires_safety_checker": components.get("safety_checker") is not None,
            **entries,
        }
        write_json(folder / INDEX_NAME, written)


def _write(folder: Path, component: Any, params: Mapping[str, Any] | None) -> list[str | None]:
    """Write one component; what the index says of it."""
    if component is None:
        return [None, None]
    if isinstance(component, FlaxModelMixin):
        if params is None:
            raise InputError(f"`params` lacks '{folder.name}'.")
        component.save_pretrained(folder, params)
        library = "transformers" if component.class_name.startswith("CLIP") else "diffusers"
        return [library, component.class_name]
    component.save_pretrained(folder)
    name = type(component).__name__.removeprefix("Flax")
    return ["diffusers" if "Scheduler" in name else "transformers", name]
