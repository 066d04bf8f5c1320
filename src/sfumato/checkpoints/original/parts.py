"""Where the networks are in a file: by the prefixes that their names have.

Files in the wild prefix names as the original code does, as some merging tools do, or, when a
single network was cut out, not at all. A single network may also have diffusers' own names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sfumato.checkpoints.original.conditions import CONDITION_MARKERS

COMPONENTS = ("unet", "vae", "text_encoder")

#: Component, layout, prefixes in the order in which they are looked for, and a name that each has.
_PLACES: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    (
        "unet",
        "ldm",
        ("model.diffusion_model.", "diffusion_model.", ""),
        "input_blocks.0.0.weight",
    ),
    ("unet", "diffusers", ("unet.", ""), "down_blocks.0.resnets.0.conv1.weight"),
    ("vae", "ldm", ("first_stage_model.", "vae.", ""), "encoder.down.0.block.0.conv1.weight"),
    ("vae", "diffusers", ("vae.", ""), "encoder.down_blocks.0.resnets.0.conv1.weight"),
    (
        "text_encoder",
        "open_clip",
        ("cond_stage_model.model.", "conditioner.embedders.0.model.", ""),
        "transformer.resblocks.0.ln_1.weight",
    ),
    (
        "text_encoder",
        "clip",
        ("cond_stage_model.transformer.", "cond_stage_model.", "text_encoder.", ""),
        "text_model.embeddings.token_embedding.weight",
    ),
    (
        "text_encoder",
        "clip",
        ("cond_stage_model.transformer.", "cond_stage_model.", ""),
        "embeddings.token_embedding.weight",
    ),
    *(
        ("conditioner", kind, ("cond_stage_model.",), marker)
        for kind, marker in CONDITION_MARKERS.items()
    ),
)

#: The averaged weights' prefix. Below it, names have lost their dots: see `averaged_name`.
AVERAGE_PREFIX = "model_ema."
_AVERAGED = "model.diffusion_model."


@dataclass(frozen=True, kw_only=True)
class Part:
    """One network in a file.

    Attributes:
        component: one of `COMPONENTS`, or ``conditioner``, of the latent diffusion paper's models.
        layout: ``ldm``, ``clip``, ``open_clip``, ``diffusers``, or of `CONDITION_MARKERS`.
        prefix: in front of its names.
        names: the name without prefix, to the name in the file.
    """

    component: str
    layout: str
    prefix: str
    names: Mapping[str, str]


def find_part(names: Iterable[str], component: str) -> Part | None:
    """Where the component is among these names, or None."""
    names = list(names)
    present = set(names)
    for candidate, layout, prefixes, marker in _PLACES:
        for prefix in prefixes if candidate == component else ():
            if prefix + marker in present:
                return Part(
                    component=component,
                    layout=layout,
                    prefix=prefix,
                    names={n.removeprefix(prefix): n for n in names if n.startswith(prefix)},
                )
    return None


def averaged_name(name: str) -> str:
    """Under which name the exponential moving average of a weight of the UNet is kept.

    >>> averaged_name("model.diffusion_model.out.2.bias")
    'model_ema.diffusion_modelout2bias'
    """
    return AVERAGE_PREFIX + name.removeprefix("model.").replace(".", "")


def averaged(part: Part, names: Iterable[str]) -> Part | None:
    """The UNet's averaged weights, when the file has all of them; else None."""
    present = set(names)
    swapped = {short: averaged_name(name) for short, name in part.names.items()}
    if part.prefix != _AVERAGED or not present.issuperset(swapped.values()):
        return None
    return Part(component=part.component, layout=part.layout, prefix=part.prefix, names=swapped)
