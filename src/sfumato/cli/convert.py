"""``sfumato convert``: a model from one layout, format or precision to another."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sfumato.checkpoints.files import shown
from sfumato.errors import InputError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Layout(StrEnum):
    """What comes out."""

    ORIGINAL = "original"
    DIFFUSERS = "diffusers"


class Precision(StrEnum):
    """In what the weights are stored."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class Component(StrEnum):
    """What may be taken out of a model."""

    UNET = "unet"
    VAE = "vae"
    TEXT_ENCODER = "text_encoder"


class PredictionType(StrEnum):
    """What a UNet predicts."""

    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A checkpoint file or a folder.")],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="A file ending in .safetensors, or a folder.")
    ],
    to: Annotated[
        Layout | None,
        typer.Option(help="original: one file for A1111 or ComfyUI. [default: by OUT's name]"),
    ] = None,
    dtype: Annotated[
        Precision | None, typer.Option(help="Store weights in this. [default: as they are]")
    ] = None,
    component: Annotated[
        list[Component] | None, typer.Option(help="Only this; may be given several times.")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Use the averaged weights.")] = False,
    prediction_type: Annotated[
        PredictionType | None, typer.Option(help="If the file does not tell what it predicts.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an OUT that exists.")
    ] = False,
) -> None:
    """Convert a model and print where it went.

    sfumato convert model.ckpt model.safetensors --dtype float16

    Pickles (.ckpt, .pt, .bin) are read as data: whatever is in them, nothing is run.
    """
    as_file = target.suffix == ".safetensors"
    layout = to or (Layout.ORIGINAL if as_file else Layout.DIFFUSERS)
    if as_file is not (layout is Layout.ORIGINAL):
        ending = "a file ending in .safetensors" if not as_file else "a folder"
        raise InputError(f"--to {layout} writes {ending}, but OUT is {shown(target)}.")
    if target.exists() and not overwrite:
        raise InputError(f"{shown(target)} exists.", hint="--overwrite replaces it.")

    import torch

    from sfumato.checkpoints.original.convert import read_parts, write_file, write_folder

    parts = read_parts(
        source,
        components=[str(name) for name in component or ()],
        dtype=None if dtype is None else getattr(torch, dtype),
        extract_ema=ema,
        prediction_type=None if prediction_type is None else str(prediction_type),
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    if layout is Layout.ORIGINAL:
        write_file(parts, target)
    else:
        write_folder(parts, target)
    print(target)
