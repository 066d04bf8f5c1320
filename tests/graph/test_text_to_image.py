"""Pictures drawn without torch are those drawn with it, for every kind of sampler and prompt."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato
from sfumato import StableDiffusionPipeline
from sfumato.assets import embedded_model_path
from sfumato.errors import ConfigError, InputError, NumericalError, WeightsMismatchError
from sfumato.graph.networks import NumpyNetworks
from sfumato.graph.numpy_ops import NumpyOps
from sfumato.graph.text_to_image import Wish, draw_image
from sfumato.pipelines.sampler_names import SAMPLERS, scheduler_for
from sfumato.runtime import kernels

STEPS = 4


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(embedded_model_path(), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def networks() -> NumpyNetworks:
    return replace(NumpyNetworks.load(embedded_model_path()), ops=NumpyOps())


def difference(pipe: Any, networks: NumpyNetworks, wish: Wish) -> int:
    """The largest difference of any pixel, in levels of 255."""
    ours = np.asarray(draw_image(networks, wish)).astype(int)
    with kernels.using(False):  # torch's own sums
        theirs = pipe(
            wish.prompt,
            negative_prompt=wish.negative_prompt,
            num_inference_steps=wish.steps,
            guidance_scale=wish.guidance_scale,
            seeds=wish.seed,
            rng=wish.rng,
            width=wish.width,
            height=wish.height,
            eta=wish.eta,
            clip_skip=wish.clip_skip or None,
            guidance_rescale=wish.guidance_rescale,
            prompt_syntax=wish.prompt_syntax,
        ).images[0]
    assert ours.shape == np.asarray(theirs).shape
    return int(np.abs(ours - np.asarray(theirs)).max())


@pytest.mark.parametrize(
    "sampler",
    [s for s in SAMPLERS if s.name not in ("DPM++ SDE", "DPM adaptive")],
    ids=lambda s: s.name,
)
def test_every_sampler_draws_torchs_picture(
    sampler: Any, pipe: Any, networks: NumpyNetworks
) -> None:
    class_name, options = scheduler_for(sampler, None)
    scheduler = getattr(sfumato, class_name).from_config(networks.model.scheduler.config, **options)
    before, pipe.scheduler = pipe.scheduler, scheduler
    try:
        # In so few steps IPNDM makes of a millionth in the noise several levels in the picture.
        steps = STEPS + 2 if sampler.name == "IPNDM" else STEPS
        wish = Wish(
            prompt="a red apple", steps=steps, guidance_scale=4.0, seed=3, width=64, height=64
        )
        assert difference(pipe, networks.with_scheduler(scheduler), wish) <= 1
    finally:
        pipe.scheduler = before


WISHES = {
    "no guidance": {"guidance_scale": 1.0},
    "negative prompt": {"negative_prompt": "green"},
    "another size": {"width": 96, "height": 136},
    "weights": {"prompt": "a (red:1.4) [apple]"},
    "a script": {"prompt": "a [red:green:0.5] apple"},
    "several parts": {"prompt": "a red apple AND a blue cat :0.6"},
    "a long prompt": {"prompt": "a red apple " * 20},
    "ComfyUI's weights": {"prompt": "a (red:1.4) apple", "prompt_syntax": "comfyui"},
    "no restored mean": {"prompt": "a (red:1.4) apple", "prompt_syntax": "a1111-no-norm"},
    "a layer less": {"clip_skip": 1},
    "rescaled guidance": {"guidance_rescale": 0.7},
    "an NVIDIA card's noise": {"rng": "nvidia"},
    "a large seed": {"seed": 2**64 - 1},
}


@pytest.mark.parametrize("name", WISHES)
def test_every_option_draws_torchs_picture(name: str, pipe: Any, networks: NumpyNetworks) -> None:
    fields = {"prompt": "a red apple", "steps": STEPS, "guidance_scale": 4.0, "seed": 1}
    assert difference(pipe, networks, Wish(**{**fields, **WISHES[name]})) <= 1


def test_steps_are_counted_as_asked_for(networks: NumpyNetworks) -> None:
    for class_name in ("PNDMScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"):
        scheduler = getattr(sfumato, class_name).from_config(networks.model.scheduler.config)
        done: list[int] = []
        wish = Wish(prompt="a cat", steps=5, width=32, height=32)
        draw_image(networks.with_scheduler(scheduler), wish, partial(done.append, 1))
        assert len(done) == 5, class_name


def test_numbers_that_are_none_are_noticed(networks: NumpyNetworks) -> None:
    class Broken:
        model = networks.model
        encode_text, decode = networks.encode_text, networks.decode

        def predict(self, x: Any, timestep: float, context: Any) -> Any:
            return x * np.float32("nan")

    broken: Any = Broken()
    with pytest.raises(NumericalError, match="NaN or infinity in step 1 of 3"):
        draw_image(broken, Wish(prompt="a cat", steps=3))


# -- folders -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "model"
    shutil.copytree(embedded_model_path(), target)
    return target


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_models_that_torch_alone_draws_with_are_named(folder: Path) -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("model_index.json", {"_class_name": "LDMPipeline"}, "models of the kind LDMPipeline"),
        ("model_index.json", {"unet": ["a", "UNet3D"]}, "the unet UNet3D"),
        ("model_index.json", {"safety_checker": ["a", "B"]}, "models with a safety_checker"),
        ("model_index.json", {"scheduler": ["a", "Odd"]}, "the scheduler Odd"),
        ("unet/config.json", {"num_class_embeds": 3}, "UNets with `num_class_embeds`"),
        ("unet/config.json", {"in_channels": 9}, "take a picture beside"),
    ]
    for name, values, message in cases:
        before = (folder / name).read_text()
        change(folder / name, **values)
        with pytest.raises((InputError, ConfigError), match=message):
            NumpyNetworks.load(folder)
        (folder / name).write_text(before)
    NumpyNetworks.load(folder)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    change(folder / "unet" / "config.json", block_out_channels=[64, 128, 128])
    message = r"mid_block\.resnets\.0.* \(256, 256, 3, 3\).* \(128, 128, 3, 3\)"
    with pytest.raises(WeightsMismatchError, match=message):
        NumpyNetworks.load(folder)
