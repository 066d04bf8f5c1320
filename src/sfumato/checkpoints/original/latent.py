"""The latent diffusion paper's own models in the original layout: which of them a file is.

Shapes say what a network takes and gives; what they cannot say (heads, the noise schedule) is that
of the published model of the same kind. The first stage is told by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sfumato.checkpoints.original.conditions import condition_family
from sfumato.checkpoints.original.families import Family, family
from sfumato.checkpoints.original.first_stages import first_stage
from sfumato.checkpoints.original.parts import Part, find_part
from sfumato.errors import CheckpointError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

CODEBOOK = "quantize.embedding.weight"
#: What a model with ``scale_by_std`` says of its first stage's latents.
SCALE = "scale_factor"
_CHURCHES = "latent-diffusion-churches"
_PLAIN = "latent-diffusion"


def is_plain(unet: Shapes) -> bool:
    """Whether a UNet (without its prefix) attends to itself alone, as in the original code."""
    return not any(".attn2." in name for name in unet)


def plain_family(shapes: Shapes, unet: Shapes, where: str, *, unet_only: bool) -> Family:
    """The family of a model whose UNet knows no tokens.

    Args:
        shapes: of all tensors.
        unet: of the UNet's, without prefix.
        where: names the file in messages.
        unet_only: the UNet alone is wanted, so that it may take what no published model does.

    Raises:
        CheckpointError: the UNet takes something that no published model does.
    """
    takes = _channels(unet, "input_blocks.0.0.weight", 1)
    gives = _channels(unet, "out.2.weight", 0)
    if takes == gives or (unet_only and takes not in (2 * gives, 2 * gives + 1)):
        emb = _channels(unet, "input_blocks.1.0.emb_layers.1.weight", 0)
        width = _channels(unet, "input_blocks.1.0.in_layers.2.weight", 0)
        name = _CHURCHES if emb == 2 * width else _PLAIN
    elif takes == 2 * gives:
        name = "latent-diffusion-super-resolution"
    elif takes == 2 * gives + 1:
        name = "latent-diffusion-inpainting"
    else:
        raise CheckpointError(
            f"{where} has a UNet of {takes} channels in and {gives} out that knows no text, which "
            "is no published model.",
            hint="`UNet2DModel.from_single_file` loads the UNet alone.",
        )
    return with_first_stage(family(name), shapes)


def conditioned_family(shapes: Shapes, condition: Part) -> Family:
    """The family of a model that is told what to draw otherwise than by CLIP.

    Args:
        shapes: of all tensors.
        condition: where the network of the condition is among them.

    Raises:
        CheckpointError: its weights have no possible shapes.
    """
    own = {short: shapes[name] for short, name in condition.names.items()}
    stage = find_part(shapes, "vae")
    quantised = stage is not None and CODEBOOK in stage.names
    found = family(condition_family(condition.layout, own, quantised))
    return with_first_stage(found, shapes)


def with_first_stage(found: Family, shapes: Shapes) -> Family:
    """The family with the first stage that is in the file, if there is one."""
    part = find_part(shapes, "vae")
    if part is None or part.layout == "diffusers":
        return found
    kind, config = first_stage_of({short: shapes[name] for short, name in part.names.items()})
    if kind == found.class_of("vae"):
        return found
    return replace(found, vae=config, classes={**found.classes, "vae": kind})


def first_stage_of(own: Shapes) -> tuple[str, dict[str, Any]]:
    """The class of a first stage (its names without prefix), and what shapes cannot say of it."""
    return first_stage("vq-f4" if CODEBOOK in own else "kl-f8")


def is_of_the_paper(own: Shapes) -> bool:
    """Whether a first stage is one of the paper's other than KL f8, which Stable Diffusion has."""
    blocks = sum(1 for i in range(8) if f"encoder.down.{i}.block.0.conv1.weight" in own)
    latent = _channels(own, "decoder.conv_in.weight", 1)
    return CODEBOOK in own or blocks > 4 or (blocks == 3 and latent == 3)


def _channels(shapes: Shapes, name: str, axis: int) -> int:
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else 0
