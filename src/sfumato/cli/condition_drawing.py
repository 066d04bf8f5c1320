"""Drawing with the models of the latent diffusion paper: of a class, a map, boxes, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from sfumato import Layout, LDMPipeline, LDMTextToImagePipeline
from sfumato.checkpoints.files import shown
from sfumato.checkpoints.jsonfile import read_json
from sfumato.checkpoints.metadata import Recipe
from sfumato.cli.conditions import OPTIONS, condition_of
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
    call |= {"height": recipe.height, "width": recipe.width}
    given = condition_of(recipe)
    if isinstance(pipe, LDMTextToImagePipeline):
        _refuse(given, None)
        return pipe(recipe.prompt, negative_prompt=negative, **call)
    conditioner = getattr(pipe, "conditioner", None)
    field = _FIELDS.get(type(conditioner).__name__)
    _refuse(given, field)
    if field is None:
        if isinstance(pipe, LDMPipeline):  # which has no guidance
            call = {k: v for k, v in call.items() if not k.startswith("guidance")}
        return pipe(**call)
    return pipe(_condition(field, getattr(recipe, field)), **call)


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
        return value
    path = Path(value)
    if field == "boxes":
        return Layout.from_json(read_json(path))
    try:
        with Image.open(path) as picture:
            return picture.copy()
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise ImageError(f"{shown(path)} is no picture that can be read: {error}") from None
