"""Objects in boxes, and the tokens that stand for them: how a picture's layout is given.

    layout = Layout([Box(label=12, x=0.1, y=0.2, width=0.5, height=0.6)])
    layout.tokens()            # 92 numbers below 8192
    layout.draw(256, 256)      # a picture of the boxes, for looking

The tokens are those of taming-transformers' builder of object boxes, with which the paper's layout
models were trained: per object its category, the upper left and the lower right corner, each one
number; then empty objects; then the two corners of the picture's part that is shown. A corner is
the number of a point in a square grid, counted row by row, that is as fine as the vocabulary has
numbers for: 90 x 90 points for 8192 tokens. The last token of the vocabulary stands for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING, Any, Self

from sfumato.errors import InputError, did_you_mean, printable

if TYPE_CHECKING:
    from PIL.Image import Image

#: What the published models were trained with.
VOCABULARY, LENGTH = 8192, 92

#: How far a box may reach over the picture's edge and be cut there: for sums of rounded numbers.
_SLACK = 1e-6

_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")


@dataclass(frozen=True, kw_only=True)
class Box:
    """An object and where it is.

    Attributes:
        label: the number of its category, or its name where the layout lists the categories.
        x, y: the upper left corner, in shares of the picture's width and height.
        width, height: the size, in the same shares.
        group: it is a group of such objects; needs the list of categories.

    Raises:
        InputError: a number is not in 0..1, or the box leaves the picture.
    """

    label: int | str
    x: float
    y: float
    width: float
    height: float
    group: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.label, bool) or not isinstance(self.label, int | str):
            raise InputError(
                f"The label of a box has to be a number or a name but is {self.label!r:.80}."
            )
        for name in ("x", "y", "width", "height"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value <= 1:
                raise InputError(
                    f"`{name}` of a box has to be a share of the picture, from 0 to 1, but is "
                    f"{value!r:.80}.",
                    hint="Divide pixels by the picture's width or height.",
                )
        if max(self.x + self.width, self.y + self.height) > 1 + _SLACK:
            raise InputError(
                f"The box at ({self.x:g}, {self.y:g}) of {self.width:g} x {self.height:g} leaves "
                "the picture, which ends at 1."
            )

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """Left, upper, right and lower edge."""
        return self.x, self.y, min(self.x + self.width, 1.0), min(self.y + self.height, 1.0)


_WHOLE = Box(label=0, x=0, y=0, width=1, height=1)


@dataclass(frozen=True)
class Layout:
    """The objects of a picture.

    Attributes:
        boxes: in any order; the models were trained with all orders.
        categories: the names of the model's categories by number, for boxes labelled by names.
        shown: the part of a larger picture that is drawn; its label means nothing. The models
            were told which part of a photograph they saw.

    Raises:
        InputError: something in the list is no box.
    """

    boxes: Sequence[Box] = ()
    categories: Sequence[str] = field(default=(), kw_only=True)
    shown: Box = field(default=_WHOLE, kw_only=True)

    def __post_init__(self) -> None:
        for box in (*self.boxes, self.shown):
            if not isinstance(box, Box):
                raise InputError(f"A layout holds boxes, not {type(box).__name__}.")

    @classmethod
    def from_json(cls, content: Any, *, categories: Sequence[str] = ()) -> Self:
        """From the parsed content of a JSON file: a list of boxes, or an object that has it.

        Each box is an object with the fields of `Box`; the outer object may have ``boxes``,
        ``categories`` and ``shown``.

        Raises:
            InputError: it says anything else.
        """
        values = content if isinstance(content, Mapping) else {"boxes": content}
        _refuse_others(values, ("boxes", "categories", "shown"), "A layout")
        boxes, names = values.get("boxes"), values.get("categories", list(categories))
        if not isinstance(boxes, list) or not isinstance(names, list | tuple):
            raise InputError("A layout has to be a list of boxes, or an object with `boxes`.")
        if not all(isinstance(name, str) for name in names):
            raise InputError("The categories of a layout have to be names.")
        more = {"shown": _box({"label": 0, **values["shown"]})} if "shown" in values else {}
        return cls([_box(box) for box in boxes], categories=tuple(names), **more)

    def tokens(self, *, vocabulary: int = VOCABULARY, length: int = LENGTH) -> list[int]:
        """The numbers that the model reads.

        Args:
            vocabulary: how many tokens the model knows.
            length: how many a layout has: three per object, and two more for the part shown
                unless the number is a multiple of three.

        Raises:
            InputError: there are too many boxes, or a label is of no category.
        """
        room, rest = divmod(length, 3)
        if rest == 1 or vocabulary < 5:
            raise InputError(
                f"{length} tokens of a vocabulary of {vocabulary} cannot hold a layout: three per "
                "object, and two or none more."
            )
        if len(self.boxes) > room:
            raise InputError(
                f"There are {len(self.boxes)} boxes, and the model takes at most {room}.",
                hint="Leave out the smallest.",
            )
        nothing, side = vocabulary - 1, math.isqrt(vocabulary)
        objects = [
            (self._category(box, nothing), *_points(box.corners, side)) for box in self.boxes
        ]
        objects += [(nothing,) * 3] * (room - len(objects))
        ends = _points(self.shown.corners, side) if rest else ()
        return [token for triple in objects for token in triple] + list(ends)

    def draw(self, width: int = 256, height: int = 256) -> Image:
        """A picture of the boxes with their labels, for people."""
        from PIL import Image, ImageDraw

        picture = Image.new("RGB", (width, height), "white")
        pen = ImageDraw.Draw(picture)
        thickness = max(1, min(width, height) // 100)
        for box, colour in zip(self.boxes, cycle(_COLOURS), strict=False):
            sides = (width - 1, height - 1) * 2
            edges = tuple(round(e * side) for e, side in zip(box.corners, sides, strict=True))
            pen.rectangle(edges, outline=colour, width=thickness)
            pen.text((edges[0] + 2 * thickness, edges[1] + thickness), self._name(box), fill=colour)
        return picture

    def _category(self, box: Box, nothing: int) -> int:
        number = box.label
        if isinstance(number, str):
            if number not in self.categories:
                shown = printable(number)
                raise InputError(
                    f"The layout's {len(self.categories)} categories have no {shown!r}."
                    f"{did_you_mean(number, self.categories)}",
                    hint="List the names of the model's categories, or give the number.",
                )
            number = self.categories.index(number)
        most = len(self.categories) or nothing
        if not 0 <= number < most:
            raise InputError(
                f"The label of a box has to be a category from 0 to {most - 1} but is {number}."
            )
        if box.group and not self.categories:
            raise InputError("A box of a group needs the list of categories.")
        number += len(self.categories) if box.group else 0
        if number >= nothing:
            raise InputError(f"There are more categories than the model's {nothing} tokens.")
        return number

    def _name(self, box: Box) -> str:
        if isinstance(box.label, int) and box.label < len(self.categories):
            return self.categories[box.label]
        return str(box.label)


def _points(corners: tuple[float, float, float, float], side: int) -> tuple[int, int]:
    """Two corners as numbers of points in a grid of ``side`` by ``side``."""
    left, upper, right, lower = (round(value * (side - 1)) for value in corners)
    return upper * side + left, lower * side + right


def _box(values: Any) -> Box:
    if not isinstance(values, Mapping):
        raise InputError(f"A box has to be an object with `label`, `x`, ..., not {values!r:.80}.")
    fields = Box.__dataclass_fields__
    _refuse_others(values, tuple(fields), "A box")
    missing = [name for name in fields if name not in values and name != "group"]
    if missing:
        raise InputError(f"A box has no {', '.join(f'`{name}`' for name in missing)}.")
    return Box(**values)


def _refuse_others(values: Mapping[Any, Any], known: tuple[str, ...], what: str) -> None:
    for name in values:
        if name not in known:
            close = did_you_mean(str(name)[:80], known)
            raise InputError(f"{what} has no entry `{printable(name)}`.{close}")
