"""The model families in the original layout: telling them apart, and their configurations.

The configurations of the published checkpoints ship with the package (``assets/configs``), so that
loading a file asks nothing of any network. The order of the tests is that of diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from sfumato.checkpoints.jsonfile import parse_json
from sfumato.checkpoints.original.first_stages import first_stage
from sfumato.checkpoints.original.parts import find_part
from sfumato.checkpoints.recognise import SDXL, SDXL_REFINER, recognise
from sfumato.errors import CheckpointError

Shape = tuple[int, ...]

FAMILIES = (
    "stable-diffusion-v1",
    "stable-diffusion-v1-inpainting",
    "instruct-pix2pix",
    "stable-diffusion-v2",
    "stable-diffusion-v2-v",
    "stable-diffusion-v2-inpainting",
    "stable-diffusion-x4-upscaler",
)
#: The models of the latent diffusion paper itself; see `latent`.
LATENT_FAMILIES = (
    "latent-diffusion",
    "latent-diffusion-churches",
    "latent-diffusion-super-resolution",
    "latent-diffusion-inpainting",
    "latent-diffusion-class",
    "latent-diffusion-class-f8",
    "latent-diffusion-layout",
    "latent-diffusion-semantic",
    "latent-diffusion-text",
    "latent-diffusion-text-f4",
)
_NETWORKS = ("unet", "vae", "text_encoder", "tokenizer")

#: The class that each component has here, in most families.
CLASS_NAMES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the published checkpoints of one architecture have in common.

    Attributes:
        name: one of `FAMILIES` or `LATENT_FAMILIES`.
        title: for people.
        pipeline: the class in diffusers that it is made for.
        modelspec: the architecture's name in the metadata standard ``modelspec``.
        repositories: names on the hub under which it was published.
        unet, vae, text_encoder, scheduler, low_res_scheduler: configurations, the schedulers'
            with their ``_class_name``; the last is of the upscaler alone.
        tokenizer: arguments of the tokenizer.
        settings: of the pipeline.
        conditioner: the configuration of what tells the UNet what to draw, of the paper's models.
        classes: of components, where they are not those of `CLASS_NAMES`.
    """

    name: str
    title: str
    pipeline: str
    modelspec: str
    repositories: tuple[str, ...] = ()
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any]
    low_res_scheduler: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    conditioner: Mapping[str, Any] = field(default_factory=dict)
    classes: Mapping[str, str] = field(default_factory=dict)

    def class_of(self, component: str) -> str:
        """The name of a component's class."""
        return {**CLASS_NAMES, **self.classes}[component]

    @property
    def is_latent_diffusion(self) -> bool:
        """Whether it is a model of the latent diffusion paper itself."""
        return self.name in LATENT_FAMILIES


@cache
def family(name: str) -> Family:
    """The family of that name, one of `FAMILIES` or `LATENT_FAMILIES`."""
    values = _merged(name)
    values["repositories"] = tuple(values.get("repositories", ()))
    if stage := values.pop("first_stage", None):
        kind, config = first_stage(stage)
        values["vae"] = {**config, **values.get("vae", {})}
        values["classes"] = {**values.get("classes", {}), "vae": kind}
    return Family(name=name, **values)


def _merged(name: str) -> dict[str, Any]:
    """A family's file on top of the one that it is like."""
    file = files("sfumato.assets").joinpath("configs", f"{name}.json")
    values = parse_json(file.read_text("utf-8"), f"{name}.json")
    like = values.pop("like", None)
    if like is None:
        return values
    base = _merged(like)
    merged = {k: {**base.get(k, {}), **values.get(k, {})} for k in (*_NETWORKS, "classes")}
    networks = {k: v for k, v in merged.items() if v}
    return {**base, **values, **networks}


def family_of_repository(repository: str) -> Family | None:
    """The family that was published under this name on the hub, if it is known."""
    names = (*FAMILIES, *LATENT_FAMILIES)
    return next((family(n) for n in names if repository in family(n).repositories), None)


def detect_family(shapes: Mapping[str, Shape], where: str, *, unet_only: bool = False) -> Family:
    """The family of a file with these tensors.

    Whether a checkpoint of Stable Diffusion 2 predicts noise or velocity is no matter of shapes;
    see `prediction`.

    Args:
        shapes: of all tensors, under the names in the file.
        where: names the file in messages.
        unet_only: the UNet alone is wanted, so other parts that this version lacks do not matter.

    Raises:
        CheckpointError: the file is of another family, or no checkpoint.
    """
    from sfumato.checkpoints.original import latent  # whose families are made by this module

    unet = find_part(shapes, "unet")
    if unet is None or unet.layout == "diffusers":
        raise _not_loadable(shapes, where)
    if (condition := find_part(shapes, "conditioner")) is not None:
        return latent.conditioned_family(shapes, condition)
    if not unet_only:
        _refuse_special(shapes, where)
    own = {short: shapes[name] for short, name in unet.names.items()}
    if latent.is_plain(own):
        return latent.plain_family(shapes, own, where, unet_only=unet_only)
    if "label_emb.0.0.weight" in own and not unet_only:
        raise _other_pipeline(where, "an unCLIP checkpoint, which begins from an image's embedding")
    channels = own["input_blocks.0.0.weight"][1:2]
    newer = _is_second_generation(shapes, own)
    if channels == (9,):
        name = "stable-diffusion-v2-inpainting" if newer else "stable-diffusion-v1-inpainting"
    elif "label_emb.weight" in own:
        name = "stable-diffusion-x4-upscaler"
    elif newer:
        if channels == (5,) and not unet_only:
            raise _other_pipeline(where, "a depth-to-image checkpoint")
        name = "stable-diffusion-v2"
    else:
        name = "instruct-pix2pix" if channels == (8,) else "stable-diffusion-v1"
    return family(name)


def _is_second_generation(shapes: Mapping[str, Shape], unet: Mapping[str, Shape]) -> bool:
    """By the width of the text; where that is of no published model, by the text encoder."""
    width = next((s[-1] for n, s in unet.items() if n.endswith("attn2.to_k.weight") and s), None)
    if width in (768, 1024):
        return width == 1024
    text = find_part(shapes, "text_encoder")
    if text is not None:
        return text.layout == "open_clip"
    projection = next((s for n, s in unet.items() if n.endswith(".proj_in.weight")), ())
    return len(projection) == 2


def _refuse_special(shapes: Mapping[str, Shape], where: str) -> None:
    for name in shapes:
        if name.startswith(("control_model.", "input_hint_block.")):
            raise CheckpointError(
                f"{where} holds a ControlNet, which `from_single_file` of a pipeline does not "
                "load.",
                hint="Load the checkpoint that it belongs to.",
            )
        if name.startswith("depth_model."):
            raise _other_pipeline(where, "a depth-to-image checkpoint")
        if name.startswith(("noise_augmentor.", "embedder.model.visual.")):
            raise _other_pipeline(
                where, "an unCLIP checkpoint, which begins from an image's embedding"
            )
    kind = recognise(shapes)
    if kind is not None and kind.base in (SDXL, SDXL_REFINER):
        raise CheckpointError(
            f"{where} is {kind.phrase} ({kind.base}), which sfumato does not draw with.",
            hint="Stable Diffusion 1.x and 2.x are supported.",
        )


def _other_pipeline(where: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{where} is {what}; it needs a pipeline of its own.",
        hint="`UNet2DConditionModel.from_single_file` and `AutoencoderKL.from_single_file` load "
        "its parts.",
    )


def _not_loadable(shapes: Mapping[str, Shape], where: str) -> CheckpointError:
    kind = recognise(shapes)
    hints = {
        "vae": "Load it with `from_single_file` of `AutoencoderKL` or `VQModel`.",
        "unet": "Load it with `from_single_file` of `UNet2DConditionModel` or `UNet2DModel`.",
        "tiny autoencoder": "Load it with `AutoencoderTiny`.",
    }
    if kind is None:
        return CheckpointError(f"{where} is no Stable Diffusion checkpoint that is recognised.")
    return CheckpointError(
        f"{where} is no Stable Diffusion checkpoint but {kind.phrase}.", hint=hints.get(kind.name)
    )
