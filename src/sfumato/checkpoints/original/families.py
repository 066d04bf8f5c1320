"""The model families in the original layout: what the published checkpoints have in common.

Their configurations ship with the package (``assets/configs``), so that loading a file asks nothing
of any network. `detection` tells which family a file is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from sfumato.checkpoints.jsonfile import parse_json
from sfumato.checkpoints.original.first_stages import first_stage

FAMILIES = (
    "stable-diffusion-v1",
    "stable-diffusion-v1-inpainting",
    "instruct-pix2pix",
    "stable-diffusion-v2",
    "stable-diffusion-v2-v",
    "stable-diffusion-v2-inpainting",
    "stable-diffusion-v2-depth",
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
