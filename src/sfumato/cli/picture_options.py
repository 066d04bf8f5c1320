"""Options about given pictures, checked without loading torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.checkpoints.files import shown
from sfumato.errors import InputError

#: How much of a picture to draw anew when nothing is said, without and with a mask.
STRENGTH, INPAINT_STRENGTH = 0.75, 1.0
HIRES_UPSCALERS = (
    "latent", "latent-nearest", "latent-bicubic", "lanczos", "bicubic", "bilinear", "nearest",
)  # fmt: skip
TILINGS = {"both": "True", "true": "True", "x": "x", "y": "y"}

#: Fields of a recipe that name files.
FILES = ("init_image", "mask", "control_image")
_NEED_PICTURE = ("mask", "outpaint")
_MAX_EDGE = 4096


def read_pictures(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe that the options about pictures set, checked.

    Args:
        given: fields to values as options give them; None stands for not given.

    Raises:
        InputError: an option is wrong, or contradicts another.
        OSError: a file is not there.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    for name in FILES:
        if name in fields:
            fields[name] = str(fields[name])
    if "tiling" in fields:
        fields["tiling"] = _choice("--tiling", fields["tiling"].lower(), TILINGS)
    if "hires_upscaler" in fields:
        names = {name: name for name in HIRES_UPSCALERS}
        fields["hires_upscaler"] = _choice("--hires-upscaler", fields["hires_upscaler"], names)
    if "outpaint" in fields:
        fields["outpaint"] = ",".join(str(edge) for edge in read_edges(fields["outpaint"]))
    return fields


def check_pictures(recipe: Mapping[str, Any]) -> None:
    """Raise when the options of a whole recipe do not go together, or a file is missing."""
    for name in FILES:
        path = recipe.get(name)
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(2, "No such picture", shown(Path(path)))
    has_picture = recipe.get("init_image") is not None
    for name in _NEED_PICTURE:
        if recipe.get(name) is not None and not has_picture:
            raise InputError(f"--{name} needs a picture.", hint="Give it with --init-img.")
    if recipe.get("mask") is not None and recipe.get("outpaint") is not None:
        raise InputError("Give either --mask or --outpaint.")
    hires = recipe.get("hires_scale") is not None
    if hires and (has_picture or recipe.get("controlnet") is not None):
        raise InputError("--hires draws from text alone, without --init-img and --controlnet.")
    if (recipe.get("controlnet") is None) != (recipe.get("control_image") is None):
        raise InputError("--controlnet and --control-image belong together.")
    if recipe.get("strength") is not None and not has_picture and not hires:
        raise InputError("--strength needs a picture.", hint="Give it with --init-img.")


def read_edges(text: str) -> tuple[int, int, int, int]:
    """Pixels to add on the left, above, on the right and below: one number for all, or four.

    Raises:
        InputError: the text is something else, or the numbers are no multiples of 8.
    """
    numbers = [int(part) for part in re.findall(r"\d{1,5}", text)]
    sound = re.fullmatch(r"\s*\d{1,5}(\s*,\s*\d{1,5}){3}\s*|\s*\d{1,5}\s*", text) is not None
    if not sound or any(edge % 8 or edge > _MAX_EDGE for edge in numbers) or not any(numbers):
        raise InputError(
            f"--outpaint takes pixels to add, such as 64 for every side or 0,0,128,0 for left,"
            f" top, right and bottom, not {text[:40]!r}.",
            hint=f"They are multiples of 8 up to {_MAX_EDGE}.",
        )
    left, top, right, bottom = numbers * (4 // len(numbers))
    return left, top, right, bottom


def _choice(option: str, value: str, known: Mapping[str, str]) -> str:
    if value not in known:
        raise InputError(f"{option} has to be one of {', '.join(known)}, not {value[:40]!r}.")
    return known[value]
