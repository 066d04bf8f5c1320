"""Boxes, the tokens that stand for them, and what is refused."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from sfumato import Box, InputError, Layout

HALF = Box(label=7, x=0.5, y=0.25, width=0.5, height=0.5)


def test_an_object_is_its_category_and_two_corners_in_a_grid_of_90() -> None:
    tokens = Layout([HALF]).tokens()
    # 0.5 * 89 = 44.5 is rounded to the even 44, 0.25 * 89 to 22; 0.75 * 89 to 67.
    assert tokens[:3] == [7, 22 * 90 + 44, 67 * 90 + 89]
    assert tokens[3:90] == [8191] * 87
    assert tokens[90:] == [0, 8099]
    assert len(tokens) == 92


@pytest.mark.parametrize("seed", range(10))
def test_tokens_can_be_read_back_to_within_the_grid(seed: int) -> None:
    rng = random.Random(seed)
    vocabulary, room = rng.choice([64, 1000, 8192]), rng.randint(1, 12)
    boxes = []
    for _ in range(rng.randint(0, room)):
        x, y = rng.random(), rng.random()
        width, height = rng.uniform(0, 1 - x), rng.uniform(0, 1 - y)
        boxes.append(Box(label=rng.randrange(60), x=x, y=y, width=width, height=height))
    shown = rng.random() < 0.5
    tokens = Layout(boxes).tokens(vocabulary=vocabulary, length=3 * room + 2 * shown)
    assert len(tokens) == 3 * room + 2 * shown
    side = int(vocabulary**0.5)
    triples = [tokens[i : i + 3] for i in range(0, 3 * room, 3)]
    assert triples[len(boxes) :] == [[vocabulary - 1] * 3] * (room - len(boxes))
    for box, (label, first, last) in zip(boxes, triples, strict=False):
        assert label == box.label
        corners = [first % side, first // side, last % side, last // side]
        for edge, number in zip(box.corners, corners, strict=True):
            assert abs(edge - number / (side - 1)) <= 0.5 / (side - 1) + 1e-9
    assert tokens[3 * room :] == ([0, side * side - 1] if shown else [])


def test_names_and_groups_are_found_in_the_categories() -> None:
    cat = Box(label="cat", x=0, y=0, width=1, height=1)
    cats = Box(label="cat", x=0, y=0, width=1, height=1, group=True)
    layout = Layout([cat, cats], categories=["dog", "cat", "owl"])
    assert layout.tokens()[0] == 1
    assert layout.tokens()[3] == 1 + 3
    with pytest.raises(InputError, match=r"no 'catt'\. Did you mean 'cat'"):
        Layout([Box(label="catt", x=0, y=0, width=1, height=1)], categories=["cat"]).tokens()
    with pytest.raises(InputError, match="needs the list of categories"):
        Layout([Box(label=1, x=0, y=0, width=1, height=1, group=True)]).tokens()


def test_the_part_shown_is_told_at_the_end() -> None:
    shown = Box(label=0, x=0, y=0.5, width=1, height=0.5)
    assert Layout([], shown=shown).tokens()[-2:] == [44 * 90, 89 * 90 + 89]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"x": -0.1}, "`x` of a box has to be a share"),
        ({"width": 1.2}, "`width` of a box"),
        ({"x": float("nan")}, "`x` of a box"),
        ({"y": "0.1"}, "`y` of a box"),
        ({"height": True}, "`height` of a box"),
        ({"x": 0.6, "width": 0.5}, "leaves the picture"),
        ({"label": 1.5}, "has to be a number or a name"),
        ({"label": None}, "has to be a number or a name"),
    ],
)
def test_impossible_boxes_are_refused(fields: dict[str, object], message: str) -> None:
    usual: dict[str, object] = {"label": 1, "x": 0.1, "y": 0.1, "width": 0.1, "height": 0.1}
    with pytest.raises(InputError, match=message):
        Box(**{**usual, **fields})  # type: ignore[arg-type]


def test_impossible_layouts_are_refused() -> None:
    with pytest.raises(InputError, match="31 boxes, and the model takes at most 30"):
        Layout([HALF] * 31).tokens()
    with pytest.raises(InputError, match="from 0 to 8190 but is 8191"):
        Layout([Box(label=8191, x=0, y=0, width=1, height=1)]).tokens()
    with pytest.raises(InputError, match="A layout holds boxes, not dict"):
        Layout([{"label": 1}])  # type: ignore[list-item]
    with pytest.raises(InputError, match="cannot hold a layout"):
        Layout([HALF]).tokens(length=4)


def test_a_layout_is_read_from_json() -> None:
    box = {"label": "owl", "x": 0.1, "y": 0.2, "width": 0.3, "height": 0.4}
    part = {"x": 0, "y": 0, "width": 0.5, "height": 1}
    text = json.dumps({"boxes": [box], "categories": ["cat", "owl"], "shown": part})
    layout = Layout.from_json(json.loads(text))
    assert layout == Layout([Box(**box)], categories=("cat", "owl"), shown=Box(label=0, **part))
    assert Layout.from_json([box], categories=("cat", "owl")).tokens()[0] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("boxes", "has to be a list of boxes"),
        ({"boxs": []}, r"no entry `boxs`\. Did you mean 'boxes'"),
        ([3], "A box has to be an object"),
        ([{"label": 1, "x": 0}], "has no `y`, `width`, `height`"),
        ([{"label": 1, "left": 0}], "no entry `left`"),
        ({"boxes": [], "categories": [1]}, "have to be names"),
    ],
)
def test_other_json_is_refused(content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Layout.from_json(content)


def test_a_layout_can_be_looked_at() -> None:
    picture = Layout([HALF]).draw(100, 80)
    assert picture.size == (100, 80)
    pixels = np.asarray(picture)
    assert (pixels[20, 50:] != 255).any(axis=1).all()  # the upper edge
    assert (pixels[:18, :45] == 255).all()  # nothing outside
