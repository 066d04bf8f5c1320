"""Networks from a file in the original layout: configured, renamed, fitted, assigned.

`open_checkpoint` decides everything that can be decided from names and shapes;
`OriginalCheckpoint.network` then reads just the tensors of one network. Nothing is copied: a
16-bit file loaded in its own precision is mapped, and its tensors become the parameters.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.checkpoints.arguments import chosen_dtype, floating_dtype
from sfumato.checkpoints.classes import CLASSES
from sfumato.checkpoints.fitting import assign, build_without_memory, check_fit
from sfumato.checkpoints.hub import local_file
from sfumato.checkpoints.hub_names import take_hub_options
from sfumato.checkpoints.keywords import reject_unknown, without_hub_keywords
from sfumato.checkpoints.original import keys, latent, notes, sizes
from sfumato.checkpoints.original.conditions import SEMANTIC, condition_config, condition_keys
from sfumato.checkpoints.original.detection import detect_family
from sfumato.checkpoints.original.families import (
    CLASS_NAMES,
    LATENT_FAMILIES,
    Family,
    family,
    family_of_repository,
)
from sfumato.checkpoints.original.folder_config import FolderConfig, local_config
from sfumato.checkpoints.original.original_config import OriginalConfig, read_original_config
from sfumato.checkpoints.original.parts import AVERAGE_PREFIX, Part, averaged, find_part
from sfumato.checkpoints.original.prediction import Prediction, choose_prediction
from sfumato.checkpoints.source import Source, TensorSource, open_source, shapes_of
from sfumato.checkpoints.tensors import cast_all
from sfumato.errors import CheckpointError, InputError, ModelNotFoundError
from sfumato.models.legacy import rename_legacy_keys
from sfumato.quantization.names import STORED
from sfumato.quantization.storage import agreed, quantize_loaded
from sfumato.runtime.pages import settling

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]

#: For each class the sizes that shapes tell, and the rules of its names.
_READERS = {
    "UNet2DConditionModel": (sizes.unet_sizes, keys.unet_keys),
    "UNet2DModel": (sizes.unet_2d_sizes, keys.unet_keys),
    "AutoencoderKL": (sizes.autoencoder_sizes, keys.autoencoder_keys),
    "VQModel": (sizes.vq_sizes, keys.autoencoder_keys),
}

#: What each class is in a model.
COMPONENT_OF = {name: component for component, name in CLASS_NAMES.items()} | {
    "UNet2DModel": "unet",
    "VQModel": "vae",
    **dict.fromkeys(("ClassEmbedder", "SpatialRescaler", "LDMBertModel"), "conditioner"),
}

#: What files hold below a network's prefix besides its weights: leftovers of training, and layers
#: of text encoders that Stable Diffusion 2 does not use.
_NEVER_MISSED = re.compile(
    r".*(position_ids|logit_scale|text_projection(\.weight)?|attn_mask|num_batches_tracked)"
    r"|(loss|model_ema)\..*|.*(resblocks|encoder\.layers)\.\d+\..*"
)


@dataclass(frozen=True, kw_only=True)
class OriginalCheckpoint:
    """A file, and what was decided about it.

    Attributes:
        source: the file.
        family: which model it is.
        original: what an original configuration says, if one was given.
        folder: a folder in diffusers' layout whose configurations go before the family's.
        average: the averaged weights of the UNet are used.
        overrides: fields of configurations that the caller gave, by component.
        asked_prediction: the prediction type that the caller asked for.
    """

    source: Source
    family: Family
    original: OriginalConfig | None = None
    folder: FolderConfig | None = None
    average: bool = False
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    asked_prediction: str | None = None

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of all tensors under their names in the file."""
        return shapes_of(self.source)

    @cached_property
    def prediction(self) -> Prediction:
        """What the UNet predicts; reads one small tensor at most.

        Raises:
            CheckpointError: the file has no UNet.
        """
        if self.folder is not None and self.asked_prediction is None:
            said = self.folder.values("scheduler").get("prediction_type")
            if isinstance(said, str):
                return Prediction(type=said, reason="the folder's scheduler")
        return choose_prediction(
            self.family,
            self.part("unet"),
            asked=self.asked_prediction,
            original=self.original.prediction_type if self.original else None,
            metadata=self.source.metadata,
            names=self.source.tensors,
            facts=self.source.facts,
            deviation=self._deviation,
        )

    @cached_property
    def settled_family(self) -> Family:
        """The family, once it is known what the UNet predicts."""
        velocity = self.family.name == "stable-diffusion-v2" and (
            self.prediction.type == "v_prediction"
        )
        return family("stable-diffusion-v2-v") if velocity else self.family

    def part(self, component: str) -> Part:
        """Where a network is in the file.

        Raises:
            CheckpointError: nowhere.
        """
        found = find_part(self.source.tensors, component)
        if found is None:
            label = component.replace("_", " ")
            raise CheckpointError(
                f"{self.source.where} holds no {label}.",
                hint=f"Pass one as a keyword argument: `{component}=...`.",
            )
        if not self.average or component != "unet":
            return found
        average = averaged(found, self.source.tensors)
        if average is None:
            raise CheckpointError(
                f"{self.source.where} holds no averaged weights (EMA).",
                hint="Leave out `extract_ema`; many files have the averaged weights under the "
                "usual names.",
            )
        return average

    def network(
        self,
        component: str,
        model_class: type[nn.Module] | None = None,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: str | torch.device = "cpu",
        check_finite: bool | None = None,
        disable_mmap: bool = False,
        offload_state_dict: bool = False,
        quantization: str | None = None,
    ) -> Any:
        """Load one network, in eval mode.

        Args:
            component: ``unet``, ``vae`` or ``text_encoder``.
            model_class: default this package's.
            dtype: of its parameters; ``None`` keeps that of the file.
            device: where they go.
            check_finite: refuse NaN and infinity; ``None`` checks all but mapped files from 2 GiB
                on.
            disable_mmap: read large files into memory instead of mapping them.
            offload_state_dict, quantization: as of `sfumato.checkpoints.folders.load_model`.

        Raises:
            CheckpointError: it is not in the file, damaged, or does not fit its configuration.
            ConfigError: its configuration is out of range.
        """
        model_class = model_class or network_class(component, self.family)
        _require_class(model_class, self.family.class_of(component), self.source.where)
        part = self.part(component)
        config, rules = self._plan(component, part)
        model = build_without_memory(model_class, model_class.config_class.from_dict(config))  # type: ignore[attr-defined]
        names = self._used_names(part, rules, set(model.state_dict()))
        where = f"{self.source.where} ({component})"
        check_fit(model, self._renamed_shapes(part, rules, names), where)
        blocks = quantization == STORED and hasattr(self.source, "has_blocks")
        kind = agreed(quantization, STORED if blocks else None, where)
        place = torch.device("cpu" if kind else device)
        with settling(bool(offload_state_dict) and torch.device(device).type == "cpu") as settle:
            tensors = self.source.read(
                names.values(),
                dtype=None if kind else dtype,
                device=place,
                check_finite=False if kind else check_finite,
                mmap=False if disable_mmap else None,
                settle=settle,
                **({"keep_blocks": True} if blocks else {}),
            )
            final = floating_dtype(tensors.values(), dtype)
            if dtype is None and kind is None:  # one type for all, that of the first
                tensors = cast_all(tensors, final, place, settle)
            own = {short: tensors[name] for short, name in names.items()}
            del tensors
            assign(model, rules.tensors_to_diffusers(own) if rules else own, where)
            if kind is not None:
                quantize_loaded(model, kind, final, where, check_finite=check_finite, settle=settle)
        return model.to(device=device, dtype=final)

    def config(self, component: str) -> dict[str, Any]:
        """The configuration that `network` would use."""
        return self._plan(component, self.part(component))[0]

    def _plan(self, component: str, part: Part) -> tuple[dict[str, Any], keys.KeyMap | None]:
        """The configuration of a network, and the rules of its names (None: they are today's)."""
        overrides = self.overrides.get(component, {})
        said: Mapping[str, Any] = getattr(self.original, component, {}) if self.original else {}
        given = self.folder.values(component) if self.folder is not None else None
        usual = getattr(self._family_of(component), component)
        stated = notes.noted(self.source.metadata, component)
        own = {short: self.shapes[name] for short, name in part.names.items()}
        if component == "text_encoder":
            rules = keys.open_clip_keys() if part.layout == "open_clip" else keys.clip_keys()
            found = sizes.text_sizes(rules.shapes_to_diffusers(own), usual, self._text_layers())
            return {**found, **stated, **(given or {}), **overrides}, rules
        if component == "conditioner":
            stages = self._halvings() if part.layout == SEMANTIC else 0
            found = condition_config(part.layout, own, usual, stages)
            return {**found, **stated, **(given or {}), **overrides}, condition_keys(part.layout)
        if part.layout == "diffusers":
            return {**(given or {**usual, **said}), **overrides}, None
        kind = self.family.class_of(component)
        read, make = _READERS[kind]
        scaled = self._latent_scale() if component == "vae" else {}
        config = {**(given or {**read(own, usual), **stated, **said, **scaled}), **overrides}
        return config, make(_class_named(kind).config_class.from_dict(config))  # type: ignore[attr-defined]

    def _halvings(self) -> int:
        """How often the first stage halves the sides of a picture."""
        there = find_part(self.source.tensors, "vae") is not None
        config = self.config("vae") if there else self.family.vae
        return len(config["block_out_channels"]) - 1

    def _latent_scale(self) -> dict[str, float]:
        """The factor of the latents that a model of the paper found out in training."""
        if not self.family.is_latent_diffusion or latent.SCALE not in self.source.tensors:
            return {}
        tensor = self.source.read([latent.SCALE])[latent.SCALE]
        return {"scaling_factor": float(tensor)} if tensor.numel() == 1 else {}

    def _family_of(self, component: str) -> Family:
        """The autoencoder and the text encoder do not depend on what the UNet predicts."""
        return self.settled_family if component == "unet" else self.family

    def _text_layers(self) -> int | None:
        """How many layers are used at most: Stable Diffusion 2 leaves out the last."""
        usual = self.family.text_encoder
        newer = usual["hidden_act"] == "gelu"
        last = self.original is not None and self.original.last_layer
        return usual["num_hidden_layers"] if newer and not last else None

    def _used_names(
        self, part: Part, rules: keys.KeyMap | None, expected: set[str]
    ) -> dict[str, str]:
        """Names to read, without prefix to in the file; says which have no place."""
        used, unknown = {}, []
        for short, name in part.names.items():
            found = rules.to_diffusers(short) if rules else (rename_legacy_keys({short: 0}), None)
            if found and not expected.isdisjoint(found[0]):
                used[short] = name
            elif part.prefix and not _NEVER_MISSED.fullmatch(short):
                unknown.append(ascii(name[:120])[1:-1])
        if unknown:
            logger.warning(
                "%s: %d tensors have no place in the %s; they are ignored: %s%s.",
                self.source.where,
                len(unknown),
                part.component.replace("_", " "),
                "; ".join(unknown[:3]),
                "; ..." if len(unknown) > 3 else "",
            )
        return used

    def _renamed_shapes(
        self, part: Part, rules: keys.KeyMap | None, names: Mapping[str, str]
    ) -> dict[str, Shape]:
        own = {short: self.shapes[name] for short, name in names.items()}
        return rules.shapes_to_diffusers(own) if rules else own

    def _deviation(self, name: str) -> float:
        tensor = self.source.read([name], check_finite=False)[name].float()
        return float(tensor.std(unbiased=False))


def network_class(component: str, of: Family | None = None) -> type[nn.Module]:
    """This package's class for a component, in a family if it is given."""
    return _class_named(CLASS_NAMES[component] if of is None else of.class_of(component))


def _class_named(name: str) -> type[nn.Module]:
    return getattr(import_module(CLASSES[name][1]), name)


def _require_class(model_class: type[nn.Module], wanted: str, where: str) -> None:
    """Raise `CheckpointError` when a file holds a network of another class than is asked for."""
    if wanted not in {base.__name__ for base in model_class.__mro__}:
        raise CheckpointError(
            f"{where} holds a {wanted}, not a {model_class.__name__}.",
            hint=f"Load it with `{wanted}.from_single_file`.",
        )


def open_checkpoint(
    given: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    config: str | os.PathLike[str] | None = None,
    original_config: Any = None,
    prediction_type: str | None = None,
    extract_ema: bool = False,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    component: str | None = None,
) -> OriginalCheckpoint:
    """Open a file in the original layout and recognise it; reads no weights.

    Args:
        given: the file, or its tensors by name.
        config: a folder in diffusers' layout whose configurations to use (no weights of it are
            read), or the hub's name of a published checkpoint whose configurations to use.
        original_config: see `read_original_config`.
        prediction_type: ``epsilon``, ``v_prediction`` or ``sample``; found out if None.
        extract_ema: use the averaged weights of the UNet.
        overrides: fields of configurations, by component.
        component: the only component that is wanted.

    Raises:
        CheckpointError: the file is damaged, unsafe, or not of this kind.
        ConfigError: a configuration is wrong.
        InputError: arguments contradict each other.
    """
    if config is not None and original_config is not None:
        raise InputError("Give either `config` or `original_config`, not both.")
    source = TensorSource(given) if isinstance(given, Mapping) else open_source(given)
    original = None if original_config is None else read_original_config(original_config)
    folder, named = _resolve_config(config)
    detected = named or _detect(source, component)
    checkpoint = OriginalCheckpoint(
        source=source,
        family=detected,
        original=original,
        folder=folder,
        average=extract_ema,
        overrides=overrides or {},
        asked_prediction=prediction_type,
    )
    if not extract_ema and any(name.startswith(AVERAGE_PREFIX) for name in source.tensors):
        logger.info(
            "%s holds averaged weights (EMA) too; `extract_ema=True` uses them.", source.where
        )
    return checkpoint


def _resolve_config(
    config: str | os.PathLike[str] | None,
) -> tuple[FolderConfig | None, Family | None]:
    if config is None:
        return None, None
    if Path(config).is_dir():
        return FolderConfig(Path(config)), None
    named = family_of_repository(str(config))
    if named is None:
        raise ModelNotFoundError(
            f"`config` is {str(config)[:120]!r}, which is no folder on this machine.",
            hint="Give a folder in diffusers' layout, or leave it out: the configurations of "
            "Stable Diffusion 1.x and 2.x are part of sfumato.",
        )
    return None, named


def _detect(source: Source, component: str | None) -> Family:
    shapes = shapes_of(source)
    if component in ("vae", "text_encoder") or (
        component == "unet" and _has_todays_names(shapes, component)
    ):
        return _family_of_part(shapes, component)
    return detect_family(shapes, source.where, unet_only=component == "unet")


def _has_todays_names(shapes: Mapping[str, Shape], component: str) -> bool:
    part = find_part(shapes, component)
    return part is not None and part.layout == "diffusers"


def _family_of_part(shapes: Mapping[str, Shape], component: str) -> Family:
    """The family by a single network. Autoencoders of 1.x and 2.x differ in nothing that counts."""
    if (condition := find_part(shapes, "conditioner")) is not None:  # a whole file of the paper's
        return latent.conditioned_family(shapes, condition)
    part = find_part(shapes, component)
    names = part.names if part is not None else {}
    own = {short: shapes[name] for short, name in names.items()}
    if component == "vae" and latent.is_of_the_paper(own):
        return latent.with_first_stage(family(LATENT_FAMILIES[0]), shapes)
    if component == "vae":
        blocks = sum(1 for i in range(8) if f"encoder.down.{i}.block.0.conv1.weight" in own)
        return family("stable-diffusion-x4-upscaler" if blocks == 3 else "stable-diffusion-v1")
    if component == "text_encoder":
        newer = part is not None and part.layout == "open_clip"
        return family("stable-diffusion-v2" if newer else "stable-diffusion-v1")
    width = next((s[-1] for n, s in own.items() if n.endswith("attn2.to_k.weight") and s), 0)
    return family("stable-diffusion-v2" if width == 1024 else "stable-diffusion-v1")


def load_single_network(
    model_class: type[nn.Module],
    given: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    torch_dtype: torch.dtype | str | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    check_finite: bool | None = None,
    disable_mmap: bool = False,
    offload_state_dict: bool = False,
    quantization: str | None = None,
    config: str | os.PathLike[str] | None = None,
    subfolder: str | None = None,
    original_config: Any = None,
    extract_ema: bool = False,
    **fields: Any,
) -> Any:
    """Load a network from a file; ``from_single_file`` of the networks describes the arguments."""
    bases = {base.__name__ for base in model_class.__mro__}
    component = next((c for name, c in COMPONENT_OF.items() if name in bases), None)
    if component is None:
        raise InputError(f"{model_class.__name__} has no original layout to load from.")
    hub = take_hub_options(fields)
    given, config = local_file(given, hub), local_config(config, hub)
    fields = without_hub_keywords(fields)
    known = set(model_class.config_class.__dataclass_fields__) - {"explicit"}  # type: ignore[attr-defined]
    known |= set(load_single_network.__kwdefaults__ or ())
    reject_unknown(f"{model_class.__name__}.from_single_file()", fields, known)
    if config is not None and subfolder:
        config = Path(config) / subfolder
    checkpoint = open_checkpoint(
        given,
        config=config,
        original_config=original_config,
        extract_ema=extract_ema,
        overrides={component: fields},
        component=component,
    )
    return checkpoint.network(
        component,
        model_class,
        dtype=chosen_dtype(torch_dtype, dtype),
        device=device,
        check_finite=check_finite,
        disable_mmap=disable_mmap,
        offload_state_dict=offload_state_dict,
        quantization=quantization,
    )
