"""A pipeline from one file in the original layout, and back into one.

The networks come from `sfumato.checkpoints.original`; this file knows which a pipeline needs, and
which arguments the callers of today and of former days pass.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch

from sfumato.checkpoints.arguments import chosen_dtype
from sfumato.checkpoints.hub import local_file
from sfumato.checkpoints.hub_names import HubOptions, take_hub_options
from sfumato.checkpoints.keywords import reject_unknown, without_hub_keywords
from sfumato.checkpoints.original.companions import (
    make_low_res_scheduler,
    make_scheduler,
    make_tokenizer,
    tokenizer_beside,
)
from sfumato.checkpoints.original.families import CLASS_NAMES, Family
from sfumato.checkpoints.original.folder_config import local_config
from sfumato.checkpoints.original.loading import OriginalCheckpoint, open_checkpoint
from sfumato.checkpoints.original.saving import save_original
from sfumato.config import check_int
from sfumato.errors import CheckpointError, InputError
from sfumato.pipelines import placement, storage
from sfumato.quantization.names import kind_for
from sfumato.runtime import policy

logger = logging.getLogger(__name__)

PipelineT = TypeVar("PipelineT")

#: Arguments of `load_single_file` besides components, settings and what concerns the hub.
KEYWORDS = (
    "torch_dtype", "dtype", "config", "original_config", "prediction_type", "extract_ema",
    "disable_mmap", "check_finite", "quantization", "offload_state_dict",
)  # fmt: skip

#: Deprecated arguments, and what to use now.
DEPRECATED = {
    "original_config_file": "`original_config`",
    "scaling_factor": "`vae=AutoencoderKL.from_single_file(..., scaling_factor=...)`",
    "image_size": "`unet=UNet2DConditionModel.from_single_file(..., sample_size=...)`",
    "num_in_channels": "nothing: it is read from the file",
    "upcast_attention": "`unet=UNet2DConditionModel.from_single_file(..., upcast_attention=...)`",
    "load_safety_checker": "`safety_checker=` and `feature_extractor=`",
    "scheduler_type": "`scheduler=`",
}

_NO_VOCABULARY = (
    "BERT's vocabulary (bert-base-uncased) does not come with sfumato: put its `vocab.txt` beside "
    "the file, or pass `tokenizer=BertTokenizer('path/to/vocab.txt')`."
)

#: What components of some pipelines are, by names of their own.
_OTHER_NAMES = {"vqvae": "vae", "bert": "conditioner"}

#: Arguments for folders and other loaders, which change nothing here.
_WITHOUT_EFFECT = ("use_safetensors", "variant")


def load_single_file(
    cls: type[PipelineT], path: str | PathLike[str] | Mapping[str, Any], **kwargs: Any
) -> PipelineT:
    """Load a pipeline from one file; ``from_single_file`` describes the arguments."""
    hub = take_hub_options(kwargs)
    path = local_file(path, hub)
    pipeline_class: Any = cls
    if storage.is_base(cls):
        pipeline_class = storage.find_pipeline(_family(path, hub, kwargs).pipeline)
    names, settings = pipeline_class._signature()
    given = {name: kwargs.pop(name) for name in names | settings if name in kwargs}
    offload_state_dict = bool(kwargs.pop("offload_state_dict", False))
    options = {**without_hub_keywords(kwargs), "offload_state_dict": offload_state_dict}
    known = {*names, *settings, *KEYWORDS, *DEPRECATED, *_WITHOUT_EFFECT}
    reject_unknown(f"{pipeline_class.__name__}.from_single_file()", options, known)
    dtype = placement.one_dtype(options.pop("torch_dtype", None), options.pop("dtype", None))
    placement.check_dtypes(dtype, names)
    placement.check_quantization(options.get("quantization"), names)
    chosen = None
    if dtype is None and "unet" not in given and not isinstance(path, Mapping):
        dtype = chosen = policy.default_dtype(Path(path))
    options["dtype"] = dtype
    overrides, scheduler_type = _read_deprecated(options)
    checkpoint = open_checkpoint(
        path,
        config=local_config(options.get("config"), hub),
        original_config=options.get("original_config"),
        prediction_type=options.get("prediction_type"),
        extract_ema=bool(options.get("extract_ema", False)),
        overrides=overrides,
    )
    _check_purpose(checkpoint, pipeline_class)
    found = {
        name: _component(checkpoint, name, options, scheduler_type)
        for name in sorted(names - set(given))
    }
    if "tokenizer" in found and found["tokenizer"] is None and not isinstance(path, Mapping):
        found["tokenizer"] = tokenizer_beside(Path(path))
    said = {**checkpoint.family.settings, **_original_settings(checkpoint)}
    arguments = {"requires_safety_checker": False, **said}
    arguments = {k: v for k, v in arguments.items() if k in settings} | found | given
    missing = [
        name
        for name in names - set(pipeline_class._optional_components)
        if name not in given and arguments[name] is None
    ]
    if missing:
        raise InputError(
            f"{checkpoint.source.where} does not give {pipeline_class.__name__} the components"
            f" {sorted(missing)}.",
            hint=_NO_VOCABULARY if missing == ["tokenizer"] else "Pass them as keyword arguments.",
        )
    pipeline: Any = pipeline_class(**arguments)
    pipeline.register_to_config(_name_or_path=None if isinstance(path, Mapping) else str(path))
    pipeline.latents_dtype = None if chosen is None else torch.float32
    return pipeline


def pipeline_of(path: str | PathLike[str] | Mapping[str, Any], **kwargs: Any) -> str:
    """The name of the pipeline that a file is made for; reads no weights.

    Args:
        path, kwargs: as for ``from_single_file``.

    Raises:
        SfumatoError: as when it is loaded.
    """
    hub = take_hub_options(kwargs)
    return _family(local_file(path, hub), hub, kwargs).pipeline


def _family(path: Any, hub: HubOptions, options: Mapping[str, Any]) -> Family:
    config = local_config(options.get("config"), hub)
    given = options.get("original_config", options.get("original_config_file"))
    return open_checkpoint(path, config=config, original_config=given).family


def _component(
    checkpoint: OriginalCheckpoint,
    name: str,
    options: Mapping[str, Any],
    scheduler_type: str | None,
) -> Any:
    """One component that the caller did not pass; None where a file cannot give it."""
    if name == "scheduler":
        return make_scheduler(checkpoint, scheduler_type)
    if name == "low_res_scheduler":
        return make_low_res_scheduler(checkpoint)
    if name == "tokenizer":
        return make_tokenizer(checkpoint)
    component = _OTHER_NAMES.get(name, name)
    if component not in {*CLASS_NAMES, *checkpoint.family.classes}:
        return None
    network = checkpoint.network(
        component,
        dtype=chosen_dtype(placement.dtype_for(options.get("dtype"), name), None),
        check_finite=options.get("check_finite"),
        disable_mmap=bool(options.get("disable_mmap", False)),
        offload_state_dict=options.get("offload_state_dict", False),
        quantization=kind_for(options.get("quantization"), name),
    )
    logger.info("Loaded %s from %s.", name, checkpoint.source.where)
    return network


def _read_deprecated(options: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Overrides of configurations, and a scheduler's type, from arguments of former days."""
    old = {name: options.pop(name) for name in DEPRECATED if name in options}
    old = {name: value for name, value in old.items() if value is not None}
    for name in old:
        warnings.warn(
            f"`{name}` of `from_single_file` is deprecated; use {DEPRECATED[name]}.",
            FutureWarning,
            stacklevel=4,
        )
    if old.get("load_safety_checker"):
        raise InputError(
            "`load_safety_checker` cannot be True: no file of weights holds a safety checker.",
            hint="Load one from its folder and pass `safety_checker=` and `feature_extractor=`.",
        )
    if "original_config_file" in old:
        options["original_config"] = old["original_config_file"]
    unet, vae = {}, {}
    if "scaling_factor" in old:
        vae["scaling_factor"] = old["scaling_factor"]
    if "image_size" in old:
        check_int("image_size", old["image_size"], 8, 65_536)
        vae["sample_size"] = old["image_size"]
        unet["sample_size"] = old["image_size"] // 8
    if "num_in_channels" in old:
        unet["in_channels"] = old["num_in_channels"]
    if "upcast_attention" in old:
        unet["upcast_attention"] = old["upcast_attention"]
    return {"unet": unet, "vae": vae}, old.get("scheduler_type")


def _original_settings(checkpoint: OriginalCheckpoint) -> Mapping[str, Any]:
    return {} if checkpoint.original is None else checkpoint.original.settings


def _check_purpose(checkpoint: OriginalCheckpoint, pipeline_class: type[Any]) -> None:
    """Say so when the file's network takes more than this pipeline gives it.

    Raises:
        CheckpointError: the pipeline is for models of the latent diffusion paper and the file is
            none, or the other way round.
    """
    class_name, wanted = pipeline_class.__name__, checkpoint.family.pipeline
    made_for = getattr(pipeline_class, "_made_for", ())
    if (checkpoint.family.is_latent_diffusion or made_for) and wanted not in made_for:
        raise CheckpointError(
            f"{checkpoint.source.where} is {checkpoint.family.title}, which {class_name} does not "
            "draw with.",
            hint=f"Load it with `{wanted}.from_single_file`.",
        )
    if class_name == "StableDiffusionPipeline" and wanted != class_name:
        logger.warning(
            "%s is %s, whose network takes more than text: it is loaded, but %s cannot draw with "
            "it. It is made for %s.",
            checkpoint.source.where,
            checkpoint.family.title,
            class_name,
            wanted,
        )


def save_single_file(
    pipeline: Any,
    path: str | PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    metadata: Mapping[str, str] | None = None,
    names: Collection[str] = tuple(CLASS_NAMES),
) -> None:
    """Save a pipeline's networks of these names; the method of that name has the arguments."""
    networks: dict[str, Any] = {name: getattr(pipeline, name, None) for name in names}
    missing = [name for name, network in networks.items() if network is None]
    if missing:
        raise CheckpointError(
            f"The pipeline has no {', '.join(missing)}, which a checkpoint in one file needs."
        )
    scheduler: Any = getattr(pipeline, "scheduler", None)
    save_original(
        {name: getattr(network, "_orig_mod", network) for name, network in networks.items()},
        path,
        dtype=None if dtype is None else chosen_dtype(dtype, None),
        prediction_type=getattr(scheduler, "config", {}).get("prediction_type"),
        metadata=metadata,
    )
