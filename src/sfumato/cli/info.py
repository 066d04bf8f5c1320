"""``sfumato info``: the recipe that a picture carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sfumato.checkpoints.files import shown
from sfumato.checkpoints.metadata import Recipe
from sfumato.checkpoints.png import read_recipe
from sfumato.cli.console import one_line, printable
from sfumato.errors import ImageError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def info(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A PNG.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as one line of JSON.")] = False,
) -> None:
    """Show how a picture was drawn, by sfumato or by a program that writes the same text.

    `sfumato --from PICTURE` draws it again.
    """
    recipe = read_recipe(picture)
    if recipe is None:
        raise ImageError(f"{shown(picture)} carries no recipe.")
    print(json.dumps(recipe.to_dict()) if as_json else describe(recipe))


def describe(recipe: Recipe) -> str:
    """The recipe for a person, one field a line.

    >>> print(describe(Recipe(prompt="a cat", steps=20, seed=5, width=64, height=64)))
    a cat
      steps             20
      seed              5
      size              64x64
    """
    lines = [printable(recipe.prompt)]
    fields = recipe.to_dict()
    width, height = fields.pop("width", None), fields.pop("height", None)
    for name, value in fields.items():
        if name == "extra":
            lines += [f"  {one_line(key):<17} {one_line(text)}" for key, text in value.items()]
        elif name != "prompt" and value != "":
            lines.append(f"  {name.replace('_', ' '):<17} {one_line(str(value))}")
        if name == "seed" and width and height:
            lines.append(f"  {'size':<17} {width}x{height}")
    return "\n".join(lines)
