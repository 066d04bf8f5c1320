"""A pipeline as a folder: one subfolder per component, and an index of their classes.

The reading and writing of each component is its own; this file decides which, and how.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import nn

from sfumato.checkpoints.classes import class_entry, find_class
from sfumato.checkpoints.components import (
    files_of_component,
    load_component,
    save_components,
)
from sfumato.checkpoints.files import is_regular, shown
from sfumato.checkpoints.folders import DIFFUSERS_VERSION, read_config
from sfumato.checkpoints.hub import HubModel, open_model
from sfumato.checkpoints.hub_names import hub_name, take_hub_options
from sfumato.checkpoints.keywords import without_hub_keywords
from sfumato.checkpoints.model_index import (
    DEFAULTS_NAME,
    INDEX_NAME,
    ModelIndex,
    read_model_index,
)
from sfumato.checkpoints.weight_files import base_names, require_variant
from sfumato.errors import ConfigError, InputError, ModelNotFoundError, did_you_mean
from sfumato.pipelines import placement, repairs
from sfumato.quantization.names import kind_for
from sfumato.runtime import engines, policy

logger = logging.getLogger(__name__)

PipelineT = TypeVar("PipelineT")

#: Pipelines that a folder may name, and the modules that have them.
PIPELINES = {
    "StableDiffusionPipeline": "sfumato.pipelines.stable_diffusion",
    "StableDiffusionImg2ImgPipeline": "sfumato.pipelines.img2img",
    "StableDiffusionInpaintPipeline": "sfumato.pipelines.inpaint",
    "StableDiffusionInstructPix2PixPipeline": "sfumato.pipelines.instruct_pix2pix",
    "StableDiffusionDepth2ImgPipeline": "sfumato.pipelines.depth2img",
    "StableDiffusionUpscalePipeline": "sfumato.pipelines.upscale",
    "StableDiffusionLatentUpscalePipeline": "sfumato.pipelines.latent_upscale",
    "StableDiffusionPanoramaPipeline": "sfumato.pipelines.panorama",
    "StableDiffusionAdapterPipeline": "sfumato.pipelines.t2i_adapter",
    "StableDiffusionControlNetPipeline": "sfumato.pipelines.controlnet",
    "StableDiffusionControlNetImg2ImgPipeline": "sfumato.pipelines.controlnet_img2img",
    "StableDiffusionControlNetInpaintPipeline": "sfumato.pipelines.controlnet_inpaint",
    "LDMTextToImagePipeline": "sfumato.pipelines.ldm_text_to_image",
    "LatentDiffusionPipeline": "sfumato.pipelines.latent_diffusion",
    "LDMPipeline": "sfumato.pipelines.ldm",
    "LDMSuperResolutionPipeline": "sfumato.pipelines.ldm_superresolution",
    "LDMInpaintPipeline": "sfumato.pipelines.ldm_inpaint",
    "DDPMPipeline": "sfumato.pipelines.pixels",
    "DDIMPipeline": "sfumato.pipelines.pixels",
}


def component_class(component: object) -> tuple[str | None, str | None]:
    """(library, class) as the index lists a component; twice None for none."""
    return class_entry(_uncompiled(component))


def _uncompiled(component: Any) -> Any:
    """The network inside what ``torch.compile`` returns."""
    return getattr(component, "_orig_mod", component)


#: Arguments besides components, settings and what concerns the hub.
_OPTIONS = (
    "torch_dtype", "dtype", "variant", "use_safetensors", "disable_mmap", "check_finite",
    "device_map", "quantization", "offload_state_dict",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Options:
    """How to load networks; see `DiffusionPipeline.from_pretrained`."""

    dtype: Any = None
    variant: str | None = None
    use_safetensors: bool | None = None
    disable_mmap: bool = False
    check_finite: bool | None = None
    quantization: Any = None
    offload_state_dict: bool = False


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a folder and the caller's keywords come to.

    Attributes:
        index: of the folder.
        pipeline_class: the class to make.
        given: components and settings from the caller.
        classes: of the components to load, by name.
    """

    index: ModelIndex
    pipeline_class: Any
    given: Mapping[str, Any]
    classes: Mapping[str, type[Any]]


def load_pipeline(cls: type[PipelineT], path: str | PathLike[str], **kwargs: Any) -> PipelineT:
    """Load a pipeline; `DiffusionPipeline.from_pretrained` describes the arguments."""
    device = _mapped_device(kwargs.pop("device_map", None))
    engine = str(kwargs.pop("engine", None) or "torch")
    engines.find(engine, {})
    plan, options = _prepare(cls, path, kwargs)
    names, settings = plan.pipeline_class._signature()
    options, chosen = _with_dtype(plan, options)
    loaded = {name: _load(plan.index, name, options, plan.pipeline_class) for name in plan.classes}
    said = {k: v for k, v in plan.index.settings.items() if k in settings}
    pipeline = plan.pipeline_class(**{**dict.fromkeys(names), **said, **loaded, **plan.given})
    pipeline.register_to_config(_name_or_path=str(path))
    pipeline.latents_dtype = torch.float32 if chosen else None
    engines.use_engine(pipeline.components, engine, {})
    return pipeline if device is None else pipeline.to(device)


def _with_dtype(plan: _Plan, options: _Options) -> tuple[_Options, bool]:
    """The options with the data type that the machine calls for, and whether one was chosen."""
    if options.dtype is not None or "unet" not in plan.classes:
        return options, False
    chosen = policy.default_dtype(plan.index.root)
    return replace(options, dtype=chosen), chosen is not None


def download_pipeline(cls: type[Any], path: str | PathLike[str], **kwargs: Any) -> str:
    """Fetch what `load_pipeline` would load; the folder that has it."""
    for name in ("device_map", "engine"):
        kwargs.pop(name, None)
    return str(_prepare(cls, path, kwargs)[0].index.root)


def _prepare(
    cls: type[Any], path: str | PathLike[str], kwargs: dict[str, Any]
) -> tuple[_Plan, _Options]:
    """Decide what to load, and fetch it where the path is a name on the hub."""
    options = _Options(
        dtype=placement.one_dtype(kwargs.pop("torch_dtype", None), kwargs.pop("dtype", None)),
        variant=kwargs.pop("variant", None),
        use_safetensors=kwargs.pop("use_safetensors", None),
        disable_mmap=bool(kwargs.pop("disable_mmap", False)),
        check_finite=kwargs.pop("check_finite", None),
        quantization=kwargs.pop("quantization", None),
        offload_state_dict=bool(kwargs.pop("offload_state_dict", False)),
    )
    hub, name = take_hub_options(kwargs), hub_name(path)
    if name is None:
        index = read_model_index(path)
        plan = _plan(cls, index, options, kwargs)
        _check_variant(lambda file: is_regular(index.root / file), plan.classes, options.variant)
        return plan, options
    without_hub_keywords(kwargs)  # refuses what is refused before anything is fetched
    model = open_model(name, hub)
    plan = _plan(cls, read_model_index(model.get(INDEX_NAME).parent), options, kwargs)
    _check_variant(model.has, plan.classes, options.variant)
    _fetch(model, plan, options)
    return plan, options


def _plan(cls: type[Any], index: ModelIndex, options: _Options, kwargs: dict[str, Any]) -> _Plan:
    pipeline_class: Any = _pipeline_class(cls, index)
    names, settings = pipeline_class._signature()
    placement.check_dtypes(options.dtype, names)
    placement.check_quantization(options.quantization, names)
    given = {name: kwargs.pop(name) for name in names | settings if name in kwargs}
    _warn_of_unused(pipeline_class, without_hub_keywords(kwargs), names | settings)
    optional = set(pipeline_class._optional_components)
    if missing := names - optional - set(given) - set(index.components):
        raise InputError(
            f"Pipeline {pipeline_class.__name__} expected {sorted(names)}, but only"
            f" {sorted(names & {*given, *index.components})} were passed.",
            hint=f"Pass {', '.join(sorted(missing))} as keyword arguments.",
        )
    where = shown(index.root / INDEX_NAME)
    classes = {
        name: find_class(str(entry[1]), f"`{name}` in {where}")
        for name, entry in index.components.items()
        if name in names and name not in given and entry != (None, None)
    }
    return _Plan(index=index, pipeline_class=pipeline_class, given=given, classes=classes)


def _fetch(model: HubModel, plan: _Plan, options: _Options) -> None:
    """Fetch the files of the components to load, once it is known that all are there."""
    files = [INDEX_NAME]
    for name, component_class in plan.classes.items():
        try:
            files += files_of_component(
                model,
                name,
                component_class,
                variant=options.variant,
                use_safetensors=options.use_safetensors,
            )
        except ModelNotFoundError as error:
            raise _with_way_out(error, plan.pipeline_class, name) from None
    if model.has(DEFAULTS_NAME):
        files.append(DEFAULTS_NAME)
    model.fetch(files)


def _mapped_device(device_map: Any) -> torch.device | None:
    if device_map is None:
        return None
    if not isinstance(device_map, str):
        raise InputError(
            "`device_map` must be a string.", hint="A device such as 'cuda', or 'balanced'."
        )
    if device_map in ("balanced", "auto"):
        return torch.accelerator.current_accelerator(check_available=True)
    return torch.device(device_map)


def _pipeline_class(cls: type[Any], index: ModelIndex) -> type[Any]:
    """The class itself; or for the base of all, the one that the folder names."""
    if not is_base(cls):
        return cls
    name = index.class_name or ""
    if name not in PIPELINES:
        raise ConfigError(
            f"{shown(index.root / INDEX_NAME)} names the unknown pipeline {name[:80]!r}."
            f"{did_you_mean(name[:80], PIPELINES)}",
            hint=f"Known are: {', '.join(PIPELINES)}.",
        )
    return find_pipeline(name)


def is_base(cls: type[Any]) -> bool:
    """Whether a class is that of all pipelines, which stands for any of them."""
    return cls.__name__ == "DiffusionPipeline" and cls.__module__ == "sfumato.pipelines.base"


def find_pipeline(name: str) -> type[Any]:
    """The class of a name in `PIPELINES`."""
    return getattr(import_module(PIPELINES[name]), name)


def _warn_of_unused(cls: type[Any], unused: Mapping[str, Any], known: set[str]) -> None:
    for name in unused:
        logger.warning(
            "Keyword arguments {'%s'} are not expected by %s and will be ignored.%s",
            name,
            cls.__name__,
            did_you_mean(name, {*known, *_OPTIONS}),
        )


def _check_variant(
    has: Callable[[str], bool], classes: Mapping[str, type[Any]], variant: str | None
) -> None:
    """Raise when no network of the model has files of the variant; ``has`` knows its paths."""
    networks = {name: base_names(c) for name, c in classes.items() if issubclass(c, nn.Module)}
    require_variant(has, networks, variant)


def _load(index: ModelIndex, name: str, options: _Options, pipeline_class: Any) -> Any:
    try:
        component = load_component(
            index,
            name,
            torch_dtype=placement.dtype_for(options.dtype, name),
            variant=options.variant,
            variant_fallback=True,
            use_safetensors=options.use_safetensors,
            disable_mmap=options.disable_mmap,
            check_finite=options.check_finite,
            quantization=kind_for(options.quantization, name),
            offload_state_dict=options.offload_state_dict,
        )
    except ModelNotFoundError as error:
        raise _with_way_out(error, pipeline_class, name) from None
    if name == "unet":
        config = read_config(index.root / name, "config.json", index.root)
        repairs.repair_sample_size(component, str(config.get("_diffusers_version", "")))
    return component


def _with_way_out(error: ModelNotFoundError, pipeline_class: Any, name: str) -> ModelNotFoundError:
    """The error of a missing component; of one that can be spared it says so."""
    if name not in pipeline_class._optional_components:
        return error
    return ModelNotFoundError(error.message, hint=f"To do without it, pass `{name}=None`.")


def model_index(pipeline: Any) -> dict[str, Any]:
    """The content of ``model_index.json``."""
    names, settings = pipeline._signature()
    listed = {
        name: list(value) if name in names else value
        for name, value in pipeline.config.items()
        if name in names | settings
    }
    return {
        "_class_name": type(pipeline).__name__,
        "_diffusers_version": DIFFUSERS_VERSION,
        **listed,
    }


def save_pipeline(
    pipeline: Any,
    path: str | PathLike[str],
    *,
    safe_serialization: bool = True,
    variant: str | None = None,
    max_shard_size: int | str | None = None,
    push_to_hub: bool = False,
) -> None:
    """Save a pipeline; `DiffusionPipeline.save_pretrained` describes the arguments."""
    if push_to_hub:
        raise InputError(
            "`push_to_hub` has to be False: sfumato uploads nothing.",
            hint="Save to a folder and upload that with `huggingface-cli upload`.",
        )
    save_components(
        path,
        {name: _uncompiled(component) for name, component in pipeline.components.items()},
        index=model_index(pipeline),
        safe_serialization=safe_serialization,
        variant=variant,
        max_shard_size=max_shard_size,
    )
