"""From one file to a folder, from a folder to one file, and from one precision to another.

    parts = read_parts("model.ckpt", dtype=torch.float16)
    write_file(parts, "model.safetensors")       # for A1111 and ComfyUI
    write_folder(parts, "model")                 # for diffusers

Works on networks rather than pipelines, so also for checkpoints that no pipeline here draws with.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfumato.checkpoints.classes import find_class
from sfumato.checkpoints.components import load_component, save_components
from sfumato.checkpoints.folders import load_model, save_model
from sfumato.checkpoints.model_index import INDEX_NAME, read_model_index
from sfumato.checkpoints.original.companions import (
    make_low_res_scheduler,
    make_scheduler,
    make_tokenizer,
)
from sfumato.checkpoints.original.families import CLASS_NAMES
from sfumato.checkpoints.original.loading import (
    COMPONENT_OF,
    OriginalCheckpoint,
    open_checkpoint,
)
from sfumato.checkpoints.original.parts import COMPONENTS, find_part
from sfumato.checkpoints.original.saving import save_original
from sfumato.checkpoints.places import read_config
from sfumato.checkpoints.source import open_source
from sfumato.errors import CheckpointError, ConfigError

_PIPELINES = {"StableDiffusionPipeline"}

#: Pipelines of the latent diffusion paper's models, and what they call a component otherwise.
_OF_THE_PAPER: dict[str, dict[str, str]] = {
    "LDMPipeline": {"vae": "vqvae"},
    "LDMSuperResolutionPipeline": {"vae": "vqvae"},
    "LDMInpaintPipeline": {"vae": "vqvae"},
    "LDMTextToImagePipeline": {"vae": "vqvae", "conditioner": "bert"},
    "LatentDiffusionPipeline": {},
}
_KNOWN = (*COMPONENTS, "conditioner")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a model consists of.

    Attributes:
        networks: some of ``unet``, ``vae``, ``text_encoder`` and ``conditioner``.
        others: scheduler and tokenizer, of a whole model.
        pipeline: the class in diffusers that draws with them, of a whole model.
        settings: of the pipeline.
        prediction_type: what the UNet predicts, if known.
    """

    networks: Mapping[str, nn.Module]
    others: Mapping[str, Any] = field(default_factory=dict)
    pipeline: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    prediction_type: str | None = None


def read_parts(
    path: str | os.PathLike[str],
    *,
    components: Collection[str] = (),
    dtype: torch.dtype | None = None,
    extract_ema: bool = False,
    prediction_type: str | None = None,
) -> Parts:
    """Read a model from one file or a folder.

    Args:
        path: a file in the original layout, or the folder of a pipeline or of a network.
        components: only these of ``unet``, ``vae`` and ``text_encoder``; empty for all there are.
        dtype: floating-point tensors are converted to it; ``None`` keeps what there is.
        extract_ema: use the averaged weights of the UNet.
        prediction_type: what the UNet predicts, when the file does not tell.

    Raises:
        CheckpointError: the model is damaged, unsafe, of another kind, or lacks a component.
        ConfigError: a configuration is wrong.
    """
    if Path(path).is_dir():
        return _from_folder(Path(path), components, dtype)
    names = list(open_source(path).tensors)
    found = [c for c in _KNOWN if find_part(names, c)]
    wanted = [c for c in COMPONENTS if c in components] or found
    missing = ", ".join(c for c in wanted if c not in found) or "network"
    if not wanted or missing != "network":
        raise CheckpointError(f"'{path}' holds no {missing.replace('_', ' ')}.")
    checkpoint = open_checkpoint(
        path,
        extract_ema=extract_ema,
        prediction_type=prediction_type,
        component=wanted[0] if len(wanted) == 1 else None,
    )
    networks = {c: checkpoint.network(c, dtype=dtype) for c in wanted}
    pipeline = checkpoint.family.pipeline
    if wanted == found and pipeline in _OF_THE_PAPER and len(wanted) > 1:
        text = {"tokenizer": None} if pipeline == "LDMTextToImagePipeline" else {}
        return Parts(
            networks=networks,
            others={"scheduler": make_scheduler(checkpoint), **text},
            pipeline=pipeline,
            prediction_type=checkpoint.prediction.type,
        )
    if len(wanted) < len(COMPONENTS):
        return Parts(networks=networks)
    return _whole(checkpoint, networks)


def _whole(checkpoint: OriginalCheckpoint, networks: Mapping[str, nn.Module]) -> Parts:
    others = {"scheduler": make_scheduler(checkpoint), "tokenizer": make_tokenizer(checkpoint)}
    low_res = make_low_res_scheduler(checkpoint)
    return Parts(
        networks=networks,
        others=others if low_res is None else {**others, "low_res_scheduler": low_res},
        pipeline=checkpoint.family.pipeline,
        settings=checkpoint.family.settings,
        prediction_type=checkpoint.prediction.type,
    )


def _from_folder(path: Path, components: Collection[str], dtype: torch.dtype | None) -> Parts:
    precision: torch.dtype | str = "auto" if dtype is None else dtype
    if not (path / INDEX_NAME).is_file():
        name = (
            read_config(path, "config.json", path).get("_class_name") or CLASS_NAMES["text_encoder"]
        )
        component = COMPONENT_OF.get(str(name))
        if component is None or (components and component not in components):
            raise ConfigError(f"'{path}' is the folder of a {str(name)[:80]}.")
        model_class: Any = find_class(str(name), f"'{path}'")
        network = load_model(model_class, path, torch_dtype=precision)
        return Parts(networks={component: network})
    index = read_model_index(path)
    paper = index.class_name in _OF_THE_PAPER
    names = _OF_THE_PAPER.get(index.class_name or "", {})
    wanted = [c for c in (_KNOWN if paper else COMPONENTS) if c in (components or _KNOWN)]
    networks = {
        c: load_component(index, names.get(c, c), torch_dtype=precision)
        for c in wanted
        if names.get(c, c) in index.components or not paper
    }
    extra = [n for n in ("scheduler", "tokenizer", "low_res_scheduler") if n in index.components]
    others = {} if components else {name: load_component(index, name) for name in extra}
    return Parts(
        networks={c: network for c, network in networks.items() if network is not None},
        others=others,
        pipeline=index.class_name or "StableDiffusionPipeline",
        settings=index.settings,
        prediction_type=others["scheduler"].config.get("prediction_type")
        if "scheduler" in others
        else None,
    )


def write_file(parts: Parts, path: str | os.PathLike[str]) -> None:
    """Write the networks as one file in the original layout; see `save_original`."""
    save_original(parts.networks, path, prediction_type=parts.prediction_type)


def write_folder(parts: Parts, path: str | os.PathLike[str]) -> None:
    """Write a folder in diffusers' layout: of a pipeline, or of a single network.

    Raises:
        CheckpointError: there are several networks, but not all that a pipeline needs.
        OSError: the disk refuses.
    """
    if len(parts.networks) == 1:
        save_model(next(iter(parts.networks.values())), path)
        return
    if parts.pipeline in _OF_THE_PAPER:
        names = _OF_THE_PAPER[parts.pipeline]
        named = {names.get(c, c): n for c, n in parts.networks.items()}
        index = {"_class_name": parts.pipeline, **parts.settings}
        save_components(path, {**named, **parts.others}, index=index)
        return
    missing = [c for c in COMPONENTS if c not in parts.networks]
    if missing or "scheduler" not in parts.others:
        raise CheckpointError(
            f"A pipeline's folder needs {', '.join(missing) or 'a scheduler'} as well.",
            hint="Convert the networks one by one.",
        )
    absent = dict.fromkeys(("safety_checker", "feature_extractor"))
    plain = parts.pipeline in _PIPELINES
    settings = {"requires_safety_checker": False} if plain else {}
    save_components(
        path,
        {**parts.networks, **parts.others, **absent, **({"image_encoder": None} if plain else {})},
        index={"_class_name": parts.pipeline, **settings, **parts.settings},
    )
