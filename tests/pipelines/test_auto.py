"""Pipelines by task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sfumato.pipelines.auto import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
)
from sfumato.pipelines.panorama import StableDiffusionPanoramaPipeline
from tests.pipelines.tiny import tiny_controlnet, tiny_pipeline

NAMES = {
    AutoPipelineForText2Image: ("StableDiffusionPipeline", "StableDiffusionControlNetPipeline"),
    AutoPipelineForImage2Image: (
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionControlNetImg2ImgPipeline",
    ),
    AutoPipelineForInpainting: (
        "StableDiffusionInpaintPipeline",
        "StableDiffusionControlNetInpaintPipeline",
    ),
}


@pytest.mark.parametrize("auto", NAMES, ids=lambda auto: auto.__name__)
def test_the_class_follows_from_task_and_controlnets(auto: Any, tmp_path: Path) -> None:
    plain, controlled = NAMES[auto]
    pipe, net = tiny_pipeline(), tiny_controlnet()
    shared = auto.from_pipe(pipe)
    assert type(shared).__name__ == plain
    assert shared.unet is pipe.unet
    under = auto.from_pipe(shared, controlnet=net)
    assert type(under).__name__ == controlled
    assert under.controlnet is net
    assert type(auto.from_pipe(under)).__name__ == controlled
    assert type(auto.from_pipe(under, controlnet=None)).__name__ == plain

    pipe.save_pretrained(tmp_path / "plain")
    assert type(auto.from_pretrained(tmp_path / "plain")).__name__ == plain
    added = auto.from_pretrained(tmp_path / "plain", controlnet=net)
    assert type(added).__name__ == controlled
    under.save_pretrained(tmp_path / "under")
    assert type(auto.from_pretrained(tmp_path / "under")).__name__ == controlled


def test_other_kinds_of_pipelines_are_refused() -> None:
    panorama = StableDiffusionPanoramaPipeline.from_pipe(tiny_pipeline())
    with pytest.raises(ValueError, match="can't find a pipeline linked to"):
        AutoPipelineForText2Image.from_pipe(panorama)
    with pytest.raises(ValueError, match="from_pretrained"):
        AutoPipelineForText2Image()
