"""Drawing with the models of the latent diffusion paper: of a class, a map, boxes, or nothing.

Two of them draw from a picture: super-resolution and inpainting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from sfumato import (
    Layout,
    LDMInpaintPipeline,
    LDMPipeline,
    LDMSuperResolutionPipeline,
    LDMTextToImagePipeline,
)
from sfumato.checkpoints.files import shown
from sfumato.checkpoints.jsonfile import read_json
from sfumato.checkpoints.metadata import Recipe
from sfumato.cli.conditions import OPTIONS, condition_of
from sfumato.cli.picture_drawing import open_picture
from sfumato.errors import ImageError, InputError
from sfumato.pipelines.latent_diffusion import LatentDiffusionBase

#: The conditioner's class to the field of a recipe that says what it draws.
_FIELDS = {
    "ClassEmbedder": "class_label",
    "SpatialRescaler": "semantic_map",
    "LayoutEncoder": "boxes",
}

#: Arguments of Stable Diffusion's pipelines that these do not have.
_OF_TEXT = ("negative_prompt", "prompt_syntax", "loras", "clip_skip")


def draws_conditions(pipe: Any) -> bool:
    """Whether a pipeline is one of these."""
    return isinstance(pipe, LatentDiffusionBase)


def draw_condition(pipe: Any, recipe: Recipe, **call: Any) -> Any:
    """Call a pipeline with what a recipe asks for.

    Args:
        pipe: one of the paper's.
        recipe: what to draw.
        call: arguments that Stable Diffusion's pipelines take.

    Raises:
        InputError: the model draws something else.
    """
    negative = call["negative_prompt"]
    call = {name: value for name, value in call.items() if name not in _OF_TEXT}
    if isinstance(pipe, LDMSuperResolutionPipeline | LDMInpaintPipeline):
        return _from_picture(pipe, recipe, call)
    _refuse_pictures(recipe)
    call |= {"height": recipe.height, "width": recipe.width}
    given = condition_of(recipe)
    if isinstance(pipe, LDMTextToImagePipeline):
        _refuse(given, None)
        return pipe(recipe.prompt, negative_prompt=negative, **call)
    conditioner = getattr(pipe, "conditioner", None)
    field = _FIELDS.get(type(conditioner).__name__)
    _refuse(given, field)
    if field is None:
        return pipe(**_without_guidance(call) if isinstance(pipe, LDMPipeline) else call)
    return pipe(_condition(field, getattr(recipe, field)), **call)


def _from_picture(pipe: Any, recipe: Recipe, call: dict[str, Any]) -> Any:
    """Enlarge the given picture, or fill what the mask covers."""
    _refuse(condition_of(recipe), None)
    masks = isinstance(pipe, LDMInpaintPipeline)
    _refuse_pictures(recipe, *("init_image", "mask")[: 1 + masks])
    if recipe.init_image is None or (masks and recipe.mask is None):
        options = "--init-img and --mask" if masks else "--init-img"
        raise InputError("This model draws from a picture.", hint=f"Give it with {options}.")
    image, call = open_picture(recipe.init_image), _without_guidance(call)
    if masks:
        mask = open_picture(recipe.mask, "L")
        return pipe(image, mask, height=recipe.height, width=recipe.width, **call)
    if recipe.height is not None or recipe.width is not None:
        raise InputError("The size follows from that of the picture to enlarge.")
    return pipe(image, **call)


def _without_guidance(call: dict[str, Any]) -> dict[str, Any]:
    """The arguments of pipelines that have no guidance."""
    return {name: value for name, value in call.items() if not name.startswith("guidance")}


def _refuse_pictures(recipe: Recipe, *allowed: str) -> None:
    """Raise for options about pictures that a model has no use for."""
    for name in ("init_image", "mask", "outpaint", "strength", "controlnet", "hires_scale"):
        if getattr(recipe, name) is not None and name not in allowed:
            option = {"init_image": "init-img", "hires_scale": "hires"}.get(name, name)
            raise InputError(f"This model does not take --{option}.")


def refuse_conditions(recipe: Recipe) -> None:
    """Raise when a recipe asks a model that draws from text for something else."""
    _refuse(condition_of(recipe), None)


def _refuse(given: str | None, wanted: str | None) -> None:
    if given == wanted:
        return
    needs = f"It needs {OPTIONS[wanted]}." if wanted else "It takes none of these options."
    if given is None:
        raise InputError("This model does not draw from text.", hint=needs)
    raise InputError(f"This model does not take {OPTIONS[given]}.", hint=needs)


def _condition(field: str, value: Any) -> Any:
    if field == "class_label":
        return int(value) if value.isascii() and value.isdecimal() else value
    path = Path(value)
    if field == "boxes":
        return Layout.from_json(read_json(path))
    try:
        with Image.open(path) as picture:
            return picture.copy()
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise ImageError(f"{shown(path)} is no picture that can be read: {error}") from None
