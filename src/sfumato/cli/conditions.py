"""Options for models that draw classes, semantic maps or layouts; checked without loading torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.checkpoints.files import shown
from sfumato.errors import InputError

_Option = partial(typer.Option, show_envvar=False)

ClassLabel = Annotated[
    str | None,
    _Option("--class-label", metavar="CLASS", help="Number or name of the class to draw."),
]
SemanticMap = Annotated[
    Path | None,
    _Option("--semantic-map", metavar="PICTURE", help="Picture whose values are labels."),
]
Boxes = Annotated[
    Path | None, _Option("--boxes", metavar="JSON", help="Objects and where they are to be.")
]

#: The fields of a recipe, each the way of one kind of model, to how strongly it is guided when
#: nothing is said. Maps and layouts were trained without guidance.
SCALES = {"class_label": 3.0, "semantic_map": 1.0, "boxes": 1.0}
OPTIONS = {name: "--" + name.replace("_", "-") for name in SCALES}


def read_conditions(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe that these options set; None stands for not given."""
    fields = {name: value for name, value in given.items() if value is not None}
    return {name: str(v) if isinstance(v, Path) else v for name, v in fields.items()}


def defaults_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe has where neither options nor the model say anything."""
    found = condition_of(given)
    return {} if found is None else {"cfg_scale": SCALES[found]}


def condition_of(recipe: Mapping[str, Any]) -> str | None:
    """Which of the fields a recipe has.

    Raises:
        InputError: it has several.
    """
    found = [name for name in SCALES if recipe.get(name) is not None]
    if len(found) > 1:
        options = ", ".join(OPTIONS[name] for name in found)
        raise InputError(f"No model takes several of {options}.")
    return found[0] if found else None


def check_conditions(recipe: Mapping[str, Any]) -> None:
    """Raise when a file is missing, or given beside others."""
    found = condition_of(recipe)
    if found in ("semantic_map", "boxes") and not Path(recipe[found]).is_file():
        raise FileNotFoundError(2, "No such file", shown(Path(recipe[found])))
    for name in ("init_image", "hires_scale", "controlnet"):
        if found is not None and recipe.get(name) is not None:
            other = "--hires" if name == "hires_scale" else "--" + name.replace("_", "-")
            raise InputError(f"{OPTIONS[found]} and {other} belong to different models.")
