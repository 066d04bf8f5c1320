"""Strengths as numbers and per block."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sfumato.adapters.state import layers_of
from sfumato.adapters.strengths import resolve
from sfumato.errors import InputError
from tests.pipelines.tiny import tiny_unet

PATHS = list(layers_of(tiny_unet()))
UP = "up_blocks.0.attentions.{}.proj_in"


def test_a_number_is_for_every_layer() -> None:
    at = resolve(-0.5, PATHS)
    assert {at(path) for path in PATHS} == {-0.5}
    assert resolve(None, PATHS)("conv_in") == 1.0
    assert resolve(np.float32(0.5), PATHS)("conv_in") == 0.5


def test_blocks_have_numbers_of_their_own() -> None:
    at = resolve({"down": 0.5, "mid": 0.25, "up": {"block_0": [0.1, 0.2]}}, PATHS)
    assert at("down_blocks.1.attentions.0.proj_in") == 0.5
    assert at("down_blocks.1.resnets.0.conv1") == 0.5
    assert at("mid_block.attentions.0.proj_in") == 0.25
    assert at(UP.format(0)) == 0.1
    assert at(UP.format(1)) == 0.2
    assert at("up_blocks.1.resnets.0.conv1") == 1.0
    assert at("conv_in") == 1.0


def test_what_is_not_mentioned_has_strength_one() -> None:
    at = resolve({"up": {}}, PATHS)
    assert {at(path) for path in PATHS} == {1.0}
    assert resolve({"up": {"block_0": [0.5]}}, PATHS)(UP.format(1)) == 0.5
    assert resolve({"mid": [0.5]}, PATHS)("mid_block.attentions.0.proj_in") == 0.5


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        (math.nan, "finite"),
        (math.inf, "finite"),
        (10**400, "finite"),
        (1j, "number"),
        (1e308, "finite number up to"),
        ("1", "number"),
        (True, "number"),
        ([1.0], "number"),
        ({"middle": 1}, "Did you mean 'mid'"),
        ({"down": math.nan}, "down"),
        ({"mid": "x"}, "mid"),
        ({"mid": [1, 2]}, "mid"),
        ({"up": {"block_1": 1}}, "block_0"),
        ({"up": {"block_7": 1}}, "block_0"),
        ({"up": {"block_0": [1, 2, 3]}}, "3 numbers for 2 layers"),
        ({"up": {"block_0": [1, None]}}, "number"),
    ],
)
def test_wrong_strengths_are_refused(strength: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(strength, PATHS)
