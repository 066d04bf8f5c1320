"""``sfumato info``: what a file is, be it a picture with a recipe, weights, or a model's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.checkpoints.files import shown
from sfumato.checkpoints.metadata import Recipe
from sfumato.checkpoints.picture_files import FORMATS, is_picture, read_recipe
from sfumato.cli.console import one_line, printable
from sfumato.errors import ImageError

if TYPE_CHECKING:
    from sfumato.checkpoints.inspection import FileInfo

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def info(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A picture, a file of weights, or a folder.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as one line of JSON.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every tensor for NaN and infinity.")
    ] = False,
    no_hash: Annotated[
        bool, typer.Option("--no-hash", help="Leave out hashes, which read the whole file.")
    ] = False,
) -> None:
    """Show what a file is, without loading it.

    Of a picture: how it was drawn; `sfumato --from PICTURE` draws it again. Of weights: kind,
    base model, what the network predicts, precision, rank, trigger words, training, hashes.
    """
    if not file.is_dir() and (is_picture(file) or file.suffix.lower() in FORMATS):
        recipe = read_recipe(file)
        if recipe is None:
            raise ImageError(f"{shown(file)} carries no recipe.")
        print(json.dumps(recipe.to_dict()) if as_json else describe(recipe))
        return

    from sfumato.checkpoints.inspection import inspect_file, require_sound

    found = inspect_file(file, hashes=not no_hash, verify=verify)
    print(json.dumps(asdict(found)) if as_json else describe_weights(found))
    require_sound(found)


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
            lines += [_line(key, text) for key, text in value.items()]
        elif name == "loras":
            lines += [_line("lora", f"{key} {file}") for key, file in value.items()]
        elif name != "prompt" and value != "":
            lines.append(_line(name.replace("_", " "), value))
        if name == "seed" and width and height:
            lines.append(_line("size", f"{width}x{height}"))
    return "\n".join(lines)


def describe_weights(found: FileInfo) -> str:
    """What is known of a file of weights, for a person, one fact a line."""
    lines = [one_line(found.description or "nothing that is recognised")]
    prediction = found.prediction_type and f"{found.prediction_type} ({found.prediction_reason})"
    count = f"{found.parameters:,} in {found.tensors:,} tensors"
    facts: dict[str, Any] = {
        "base model": found.base_model,
        "prediction": prediction,
        "components": _pairs(found.components),
        **found.adapter,
        "vectors": found.vectors and f"{found.vectors[0]} of width {found.vectors[1]}",
        "precision": ", ".join(found.precision),
        "parameters": count,
        "averaged weights": "yes" if found.averaged_weights else None,
        "trigger words": ", ".join(found.trigger_words),
        "frequent tags": ", ".join(found.frequent_tags),
        **found.training,
        "size": f"{found.size:,} bytes" if found.size else None,
    }
    if found.hashes is not None:
        facts |= {
            "SHA-256": found.hashes.sha256,
            "short hash": found.hashes.short,
            "old short hash": found.hashes.old,
            "hash of weights": found.hashes.weights,
        }
    if found.not_finite is not None:
        bad = len(found.not_finite)
        facts["verified"] = f"{bad} tensors hold NaN or infinity" if bad else "all tensors finite"
    return "\n".join([*lines, *(_line(name, value) for name, value in facts.items() if value)])


def _pairs(table: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in table.items())


def _line(name: str, value: object) -> str:
    return f"  {one_line(name):<17} {one_line(str(value))}"
