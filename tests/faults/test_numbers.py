"""Numbers out of range or of the wrong type: named and refused before anything is computed."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch

from sfumato.diffusion.noise import SeededNoise
from sfumato.errors import SfumatoError
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.pipelines.tiny import seeded, tiny_pipeline, tiny_scheduler

NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    pipe = tiny_pipeline(scheduler=tiny_scheduler("EulerDiscreteScheduler"))
    return pipe


def _refused(pipe: Any, match: str, **arguments: Any) -> None:
    """The call fails, and not one network was run for it."""
    runs: list[Any] = []
    hooks = [
        network.register_forward_pre_hook(lambda *_: runs.append(1))
        for network in (pipe.unet, pipe.text_encoder)
    ]
    base = {"prompt": "a boat", "num_inference_steps": 1, "output_type": "latent"}
    try:
        with pytest.raises(ValueError, match=match) as caught:
            pipe(**{**base, **arguments})
    finally:
        for hook in hooks:
            hook.remove()
    assert isinstance(caught.value, SfumatoError)
    assert len(str(caught.value)) < 1000
    assert not runs


@pytest.mark.parametrize("side", ["height", "width"])
@pytest.mark.parametrize(
    "value", [0, -8, 7, 513, 10**9, 16392, "512", 512.5, NAN, INF, True, [16], 2.0**80, object()]
)
def test_a_wrong_size_is_refused(pipe: StableDiffusionPipeline, side: str, value: Any) -> None:
    _refused(pipe, "`height` and `width` have to be divisible by 8 but are", **{side: value})


def test_whole_numbers_of_other_types_are_sizes(pipe: StableDiffusionPipeline) -> None:
    import numpy as np

    for height in (16.0, np.int64(16), torch.tensor(16)):
        call: Any = {"height": height, "num_inference_steps": 1, "output_type": "latent"}
        assert pipe("a boat", **call).images.shape == (1, 4, 8, 8)


@pytest.mark.parametrize("value", [0, -1, 10**9, 1001, 1.5, NAN, "20", True, None, [20]])
def test_a_wrong_number_of_steps_is_refused(pipe: StableDiffusionPipeline, value: Any) -> None:
    _refused(pipe, "`num_inference_steps` has to be an integer", num_inference_steps=value)


@pytest.mark.parametrize("name", ["guidance_scale", "guidance_rescale"])
@pytest.mark.parametrize("value", [NAN, INF, -INF, "7.5", True, None, [7.5], 10**400])
def test_a_wrong_guidance_is_refused(pipe: StableDiffusionPipeline, name: str, value: Any) -> None:
    _refused(pipe, f"`{name}` has to be a finite number", **{name: value})


@pytest.mark.parametrize("scale", [1, 0, -1, -(10**9)])
def test_a_guidance_of_one_or_less_asks_the_network_once(
    pipe: StableDiffusionPipeline, scale: float
) -> None:
    batches: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    call: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    result = pipe("a boat", guidance_scale=scale, generator=seeded(1), **call).images
    hook.remove()
    assert batches == [1, 1]
    plain = pipe("a boat", guidance_scale=1.0, generator=seeded(1), **call).images
    assert torch.equal(result, plain)


@pytest.mark.parametrize("value", [0, -1, 10**6, 1.5, NAN, "2", True, None])
def test_a_wrong_number_of_pictures_is_refused(pipe: StableDiffusionPipeline, value: Any) -> None:
    _refused(pipe, "`num_images_per_prompt` has to be an integer", num_images_per_prompt=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, NAN, INF, "1", True, None])
def test_a_wrong_eta_is_refused(pipe: StableDiffusionPipeline, value: Any) -> None:
    _refused(pipe, "`eta` has to be a finite number from 0 to 1", eta=value)


@pytest.mark.parametrize("value", [-1, 4, 10**9, 0.5, "1"])
def test_a_wrong_clip_skip_is_a_value_error(pipe: StableDiffusionPipeline, value: Any) -> None:
    with pytest.raises(ValueError, match="`clip_skip` has to be an integer from 0 to 3"):
        pipe("a boat", clip_skip=value, num_inference_steps=1)


@pytest.mark.parametrize(
    "value",
    [[], [1, 5], [500, 500], [500, -1], [1000, 1], [NAN, 1], [5, "1"], [True, False], 5, "51"],
)
def test_wrong_timesteps_are_refused(pipe: StableDiffusionPipeline, value: Any) -> None:
    _refused(pipe, "`timesteps`", timesteps=value)


@pytest.mark.parametrize(
    "value", [[], [1.0, 2.0], [2.0, 2.0], [2.0, NAN], [INF, 1.0], [1.0, -0.5], ["2", "1"], 3.0]
)
def test_wrong_sigmas_are_refused(pipe: StableDiffusionPipeline, value: Any) -> None:
    _refused(pipe, "`sigmas`", sigmas=value)


@pytest.mark.parametrize("value", [42, "42", [42], [seeded(1), None], torch.Generator])
def test_a_wrong_generator_is_refused(pipe: StableDiffusionPipeline, value: Any) -> None:
    _refused(pipe, r"`generator` has to be a torch\.Generator", generator=value)


@pytest.mark.parametrize("count", [0, 2, 3])
def test_a_wrong_number_of_generators_is_refused(pipe: StableDiffusionPipeline, count: int) -> None:
    generators = [seeded(seed) for seed in range(count)]
    _refused(pipe, f"a list of generators of length {count}", generator=generators)


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2, 4, 8, 8),
        torch.zeros(1, 3, 8, 8),
        torch.zeros(4, 8, 8),
        torch.zeros(1, 4, 8, 8, dtype=torch.int64),
        torch.full((1, 4, 8, 8), NAN),
        torch.full((1, 4, 8, 8), INF),
        [[0.0]],
        "noise",
    ],
    ids=["batch", "channels", "axes", "integers", "NaN", "infinity", "list", "text"],
)
def test_wrong_latents_are_refused(pipe: StableDiffusionPipeline, value: Any) -> None:
    _refused(pipe, "`latents` has", latents=value)


@pytest.mark.parametrize("value", [0, -1, 1.5, "1", True])
def test_a_wrong_callback_interval_is_refused(pipe: StableDiffusionPipeline, value: Any) -> None:
    with pytest.warns(FutureWarning):
        _refused(pipe, "`callback_steps` has to be a positive integer", callback_steps=value)


def test_other_wrong_arguments_are_refused(pipe: StableDiffusionPipeline) -> None:
    _refused(pipe, "`cross_attention_kwargs` has to be a dict", cross_attention_kwargs=[1])
    _refused(pipe, "`callback_on_step_end` has to be callable", callback_on_step_end="print")
    _refused(
        pipe,
        "`callback_on_step_end_tensor_inputs` has to be in",
        callback_on_step_end_tensor_inputs=["__class__"],
    )


@pytest.mark.parametrize("seed", [-1, -2, 2**64, 2**70, "abc", 1.5, None, True])
def test_a_wrong_seed_is_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"from 0 to 2\*\*64 - 1"):
        SeededNoise([seed])


@pytest.mark.parametrize("seed", [0, 2**32, 2**63, 2**64 - 1])
def test_every_seed_of_64_bits_draws(seed: int) -> None:
    draw = SeededNoise([seed]).draw((1, 4, 8, 8), torch.float32, "cpu")
    assert torch.equal(draw, SeededNoise([seed]).draw((1, 4, 8, 8), torch.float32, "cpu"))


def test_a_refused_call_leaves_nothing_behind(pipe: StableDiffusionPipeline) -> None:
    call: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    before = pipe("a boat", generator=seeded(1), **call).images
    for wrong in ({"eta": 2.0}, {"clip_skip": 99}, {"prompt": None}, {"generator": 3}):
        with pytest.raises(ValueError, match=r"."):
            pipe(**{"prompt": "a boat", **call, **wrong})
    assert torch.equal(pipe("a boat", generator=seeded(1), **call).images, before)
    assert threading.get_ident() not in pipe._calls._running
