"""Calls of the paper's conditioned models: batches, sizes, guidance, seeds, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sfumato import Box, InputError, LatentDiffusionPipeline, Layout
from tests.pipelines.tiny_conditioned import LABELS, pipeline

MAP = torch.arange(16 * 24).reshape(16, 24) % LABELS
BOXES = Layout([Box(label=3, x=0.1, y=0.2, width=0.5, height=0.5)])
WISHES: dict[str, list[Any]] = {
    "class": [1, 3],
    "semantic": [MAP, (MAP + 1) % LABELS],
    "layout": [BOXES, Layout()],
}


def draw(kind: str, *given: Any, seed: int = 0, **call: Any) -> np.ndarray[Any, Any]:
    pipe = pipeline(kind)
    call = {"seeds": seed, "num_inference_steps": 2, "output_type": "np", **call}
    return np.asarray(pipe(*given, **call).images)


@pytest.mark.parametrize("kind", WISHES)
def test_each_picture_of_a_batch_is_what_it_would_be_alone(kind: str) -> None:
    size = {} if kind == "semantic" else {"height": 16, "width": 24}
    both = draw(kind, WISHES[kind], seeds=[3, 4], **size)
    assert both.shape == (2, 16, 24, 3)
    for index, seed in enumerate((3, 4)):
        alone = draw(kind, WISHES[kind][index], seed=seed, **size)
        assert np.abs(alone[0] - both[index]).max() < 1e-5
    assert np.abs(both[0] - both[1]).max() > 1e-3


@pytest.mark.parametrize("kind", WISHES)
def test_several_pictures_of_each_condition_follow_each_other(kind: str) -> None:
    many = draw(kind, WISHES[kind], batch_size=2, seeds=[1, 2, 3, 4])
    assert len(many) == 4
    for index, seed in enumerate((1, 2, 3, 4)):
        alone = draw(kind, WISHES[kind][index // 2], seed=seed)
        assert np.abs(alone[0] - many[index]).max() < 1e-5


@pytest.mark.parametrize("kind", ["class", "layout"])
def test_guidance_leads_away_from_what_it_is_told(kind: str) -> None:
    first, second = WISHES[kind]
    plain = draw(kind, first)
    usual = draw(kind, first, guidance_scale=4.0)
    told = draw(kind, first, guidance_scale=4.0, negative_condition=second)
    itself = draw(kind, first, guidance_scale=4.0, negative_condition=first)
    assert np.abs(itself - plain).max() < 1e-4  # away from itself is nowhere
    assert np.abs(usual - plain).max() > 1e-3
    if kind == "class":
        assert np.abs(told - usual).max() > 1e-3
    else:
        assert np.array_equal(told, usual)  # for layouts nothing is a layout without boxes


def test_semantic_maps_are_guided_by_other_maps() -> None:
    first, second = WISHES["semantic"]
    told = draw("semantic", first, guidance_scale=3.0, negative_condition=second)
    assert np.abs(told - draw("semantic", first)).max() > 1e-3
    with pytest.raises(InputError, match="trained with maps alone"):
        draw("semantic", first, guidance_scale=3.0)


def test_a_map_says_how_large_the_picture_is() -> None:
    assert draw("semantic", torch.zeros(32, 8, dtype=torch.int64)).shape == (1, 32, 8, 3)
    assert draw("semantic", MAP, height=16, width=24).shape == (1, 16, 24, 3)


def test_callbacks_see_the_scale() -> None:
    pipe, seen = pipeline("class"), []

    def note_scale(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        seen.append(pipe.guidance_scale)
        return tensors

    call: dict[str, Any] = {
        "seeds": 0,
        "num_inference_steps": 3,
        "callback_on_step_end": note_scale,
    }
    pipe(2, guidance_scale=2.0, **call)
    assert seen == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("class", [None], "whole number"),
        ("class", ["cat"], "whole number"),
        ("class", [LABELS], "from 0 to 4"),
        ("layout", [None], "`Layout` is needed"),
        ("layout", [[BOXES, 3]], "has to be a `Layout`"),
        ("semantic", [None], "semantic map has to be"),
    ],
)
def test_what_the_model_does_not_draw_is_refused(kind: str, given: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(kind, *given)


def test_a_map_and_a_size_have_to_agree() -> None:
    with pytest.raises(InputError, match="size"):
        draw("semantic", MAP, height=64, width=64)


def test_components_are_shared_through_from_pipe() -> None:
    pipe = pipeline("class")
    other = LatentDiffusionPipeline.from_pipe(pipe)
    assert other.conditioner is pipe.conditioner and other.unet is pipe.unet
