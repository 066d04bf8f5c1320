"""The depth-to-image checkpoint of Stability AI in one file: loaded without its depth estimator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfumato import DiffusionPipeline, StableDiffusionDepth2ImgPipeline
from sfumato.checkpoints.inspection import inspect_file
from sfumato.checkpoints.original.families import family
from sfumato.errors import InputError
from tests.checkpoints.original.synthetic import (
    checkpoint_tensors,
    networks,
    predicting,
    tiny_configs,
    write,
)

NAME = "stable-diffusion-v2-depth"


@pytest.fixture(scope="module")
def made() -> dict[str, torch.nn.Module]:
    return networks(tiny_configs(NAME), 3)


@pytest.fixture(scope="module", params=[True, False], ids=["with estimator", "without"])
def file(
    request: pytest.FixtureRequest,
    made: dict[str, torch.nn.Module],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    tensors: dict[str, Tensor] = predicting(checkpoint_tensors(made), False)
    if request.param:
        tensors["depth_model.model.pretrained.model.cls_token"] = torch.zeros(1, 1, 4)
    return write(tensors, tmp_path_factory.mktemp("depth") / "512-depth.safetensors")


def test_its_networks_are_those_of_the_file(file: Path, made: dict[str, torch.nn.Module]) -> None:
    pipeline = DiffusionPipeline.from_single_file(file)
    assert type(pipeline) is StableDiffusionDepth2ImgPipeline
    assert pipeline.unet.config.in_channels == 5
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    loaded = pipeline.vae.state_dict()
    for name, tensor in made["vae"].state_dict().items():
        assert torch.equal(loaded[name], tensor), name


def test_it_draws_with_depths_that_are_given_and_asks_for_them(file: Path) -> None:
    pipeline = StableDiffusionDepth2ImgPipeline.from_single_file(file)
    pipeline.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 64, 64)
    embeds = torch.rand(1, 5, 64)
    call = {
        "image": picture,
        "prompt_embeds": embeds,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "output_type": "latent",
    }
    near = pipeline(**call, depth_map=torch.rand(1, 8, 8), generator=torch.manual_seed(0))
    far = pipeline(**call, depth_map=torch.rand(1, 8, 8), generator=torch.manual_seed(0))
    assert not torch.equal(near.images, far.images)
    with pytest.raises(InputError, match="no depth estimator"):
        pipeline(**call)


def test_it_is_told_from_other_files(file: Path) -> None:
    assert family(NAME).title in str(inspect_file(file))
