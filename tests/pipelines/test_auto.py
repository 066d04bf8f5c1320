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
from sfumato.pipelines.base import DiffusionPipeline
from sfumato.pipelines.inpaint import StableDiffusionInpaintPipeline
from sfumato.pipelines.instruct_pix2pix import StableDiffusionInstructPix2PixPipeline
from sfumato.pipelines.panorama import StableDiffusionPanoramaPipeline
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.checkpoints.original.synthetic import checkpoint_tensors, networks, tiny_configs, write
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


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("families")
    names = ("stable-diffusion-v1", "stable-diffusion-v1-inpainting", "instruct-pix2pix")
    made: dict[str, Path] = {}
    for name in names:
        tensors = checkpoint_tensors(networks(tiny_configs(name), 0))
        made[name] = write(tensors, place / f"{name}.safetensors")
    return made


@pytest.mark.parametrize("auto", NAMES, ids=lambda auto: auto.__name__)
def test_the_class_for_one_file_follows_from_the_task(
    auto: Any, checkpoints: dict[str, Path]
) -> None:
    for name in ("stable-diffusion-v1", "stable-diffusion-v1-inpainting"):
        assert type(auto.from_single_file(checkpoints[name])).__name__ == NAMES[auto][0]
    file, net = checkpoints["stable-diffusion-v1"], tiny_controlnet()
    assert type(auto.from_single_file(file, controlnet=net)).__name__ == NAMES[auto][1]
    with pytest.raises(ValueError, match="can't find a pipeline linked to"):
        auto.from_single_file(checkpoints["instruct-pix2pix"])


def test_the_base_of_all_loads_one_file_with_the_class_that_it_is_made_for(
    checkpoints: dict[str, Path],
) -> None:
    classes = [type(DiffusionPipeline.from_single_file(file)) for file in checkpoints.values()]
    assert classes == [
        StableDiffusionPipeline,
        StableDiffusionInpaintPipeline,
        StableDiffusionInstructPix2PixPipeline,
    ]
    with pytest.raises(TypeError, match="no_such_option"):
        DiffusionPipeline.from_single_file(checkpoints["instruct-pix2pix"], no_such_option=True)
