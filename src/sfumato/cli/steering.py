"""Options for the parts of a guidance, as one text in a recipe; read without loading torch.

pag 3 + interval 0.1 0.9        what a picture carries
--pag 3 --guidance-interval 0.1,0.9
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.errors import InputError

if TYPE_CHECKING:
    from sfumato.diffusion.steering import GuidancePart

_Number = partial(typer.Option, show_envvar=False, metavar="X", min=0)

Interval = Annotated[
    str | None,
    typer.Option(
        "--guidance-interval",
        show_envvar=False,
        metavar="FROM,TO",
        help="Guide between these shares of the steps only, such as 0.1,0.8.",
    ),
]
CfgPlusPlus = Annotated[
    float | None, _Number("--cfg-pp", max=100, help="CFG++ of this strength, mostly 0 to 1.")
]
Pag = Annotated[
    float | None, _Number("--pag", max=1000, help="Perturbed-attention guidance, such as 3.")
]
Sag = Annotated[
    float | None, _Number("--sag", max=1000, help="Self-attention guidance, such as 0.75.")
]
MimicScale = Annotated[
    float | None,
    _Number("--mimic-scale", max=1000, help="Dynamic thresholding to the range of this scale."),
]

#: Option to the name in a recipe, in the order in which the parts act.
NAMES = {
    "guidance_interval": "interval",
    "cfg_pp": "cfg++",
    "pag": "pag",
    "sag": "sag",
    "mimic_scale": "thresholding",
}
_PART = re.compile(r"\s*([a-z+]+?)((?:\s+\d+(?:\.\d+)?(?:e-?\d+)?)+)\s*")


def read_steering(given: Mapping[str, Any]) -> dict[str, str]:
    """The field of a recipe that these options set; None stands for not given.

    Raises:
        InputError: an interval is none.
    """
    parts = []
    for option, name in NAMES.items():
        value = given[option]
        if value is None:
            continue
        numbers = _interval(value) if option == "guidance_interval" else (value,)
        parts.append(" ".join([name, *(f"{number:g}" for number in numbers)]))
    return {"guidance": " + ".join(parts)} if parts else {}


def _interval(text: str) -> tuple[float, float]:
    try:
        start, stop = (float(part) for part in text.split(","))
    except ValueError:
        start, stop = 1.0, 0.0
    if not 0 <= start < stop <= 1:
        raise InputError(
            f"--guidance-interval takes two shares of the steps such as 0.1,0.8, not {text[:40]!r}."
        )
    return start, stop


def check_steering(text: str | None) -> list[tuple[str, tuple[float, ...]]]:
    """The names and numbers in a recipe's text.

    Raises:
        InputError: it is something else.
    """
    found: list[tuple[str, tuple[float, ...]]] = []
    for part in text[:1000].split(" + ") if text else ():
        match = _PART.fullmatch(part)
        numbers = tuple(float(number) for number in match[2].split()) if match else ()
        if match is None or match[1] not in NAMES.values():
            raise InputError(
                f"There is no part of a guidance {part.strip()[:40]!r}.",
                hint=f"Known: {', '.join(NAMES.values())}, each with its number.",
            )
        if len(numbers) != (2 if match[1] == "interval" else 1):
            raise InputError(f"{part.strip()[:40]!r} has not as many numbers as it takes.")
        found.append((match[1], numbers))
    return found


def guidance_parts(text: str | None) -> list[GuidancePart]:
    """The parts that a recipe's text stands for."""
    from sfumato.diffusion.guidance_attention import (
        PerturbedAttentionGuidance,
        SelfAttentionGuidance,
    )
    from sfumato.diffusion.guidance_parts import CFGPlusPlus, DynamicThresholding, IntervalGuidance

    kinds: dict[str, Any] = {
        "interval": IntervalGuidance,
        "cfg++": CFGPlusPlus,
        "pag": PerturbedAttentionGuidance,
        "sag": SelfAttentionGuidance,
        "thresholding": DynamicThresholding,
    }
    return [kinds[name](*numbers) for name, numbers in check_steering(text)]
