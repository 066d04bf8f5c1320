"""The pipeline's interface against diffusers: signatures, defaults, messages and helpers."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion as oracle_module

from sfumato.pipelines import stable_diffusion
from sfumato.pipelines.base import DiffusionPipeline
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.parity.oracle_pipeline import distance, oracle_of
from tests.pipelines.tiny import WIDTH, seeded, tiny_pipeline, tiny_scheduler


@cache
def _pair() -> tuple[StableDiffusionPipeline, Any]:
    ours = tiny_pipeline()
    return ours, oracle_of(ours)


METHODS = (
    "__init__",
    "__call__",
    "encode_prompt",
    "encode_image",
    "prepare_ip_adapter_image_embeds",
    "run_safety_checker",
    "decode_latents",
    "prepare_extra_step_kwargs",
    "check_inputs",
    "prepare_latents",
    "get_guidance_scale_embedding",
    "enable_freeu",
    "fuse_qkv_projections",
    "unfuse_qkv_projections",
    "enable_attention_slicing",
    "set_attention_slice",
    "enable_model_cpu_offload",
    "enable_sequential_cpu_offload",
    "progress_bar",
    "load_ip_adapter",
    "set_ip_adapter_scale",
    "unload_ip_adapter",
)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_parameters_and_defaults_of_diffusers(name: str) -> None:
    ours, theirs = (
        inspect.signature(getattr(cls, name)).parameters
        for cls in (StableDiffusionPipeline, diffusers.StableDiffusionPipeline)
    )
    assert list(ours) == list(theirs)
    for parameter, other in zip(ours.values(), theirs.values(), strict=True):
        assert parameter.kind == other.kind, parameter.name
        default = other.default
        expected = tuple(default) if isinstance(default, list) else default
        assert parameter.default == expected, parameter.name


@pytest.mark.parametrize(
    "name",
    [
        "model_cpu_offload_seq",
        "_optional_components",
        "_exclude_from_cpu_offload",
        "_callback_tensor_inputs",
        "_lora_loadable_modules",
        "unet_name",
        "text_encoder_name",
        "config_name",
    ],
)
def test_a_class_attribute_is_that_of_diffusers(name: str) -> None:
    oracle = getattr(diffusers.StableDiffusionPipeline, name)
    assert getattr(StableDiffusionPipeline, name) == oracle


WRONG_CALLS: dict[str, dict[str, Any]] = {
    "height": {"prompt": "x", "height": 12, "width": 16},
    "width": {"prompt": "x", "width": 513, "height": 512},
    "callback_steps 0": {"prompt": "x", "callback_steps": 0},
    "callback_steps text": {"prompt": "x", "callback_steps": "2"},
    "tensor names": {"prompt": "x", "callback_on_step_end_tensor_inputs": ["noise"]},
    "both prompts": {"prompt": "x", "prompt_embeds": torch.zeros(1, 77, WIDTH)},
    "no prompt": {},
    "prompt type": {"prompt": 3},
    "prompt tuple": {"prompt": ("a", "b")},
    "both negatives": {
        "prompt": "x",
        "negative_prompt": "y",
        "negative_prompt_embeds": torch.zeros(1, 77, WIDTH),
    },
    "shapes": {
        "prompt_embeds": torch.zeros(1, 77, WIDTH),
        "negative_prompt_embeds": torch.zeros(2, 77, WIDTH),
    },
    "both pictures": {
        "prompt": "x",
        "ip_adapter_image": torch.zeros(1, 3, 8, 8),
        "ip_adapter_image_embeds": [torch.zeros(1, 1, 8)],
    },
    "pictures no list": {"prompt": "x", "ip_adapter_image_embeds": torch.zeros(1, 1, 8)},
    "pictures 2D": {"prompt": "x", "ip_adapter_image_embeds": [torch.zeros(1, 8)]},
    "negative type": {"prompt": ["x"], "negative_prompt": "y"},
    "negative count": {"prompt": ["x", "z"], "negative_prompt": ["y"]},
    "generators": {"prompt": "x", "generator": seeded(1, 2)},
    "timesteps and sigmas": {"prompt": "x", "timesteps": [5, 1], "sigmas": [2.0, 1.0]},
    "timesteps": {"prompt": "x", "timesteps": [5, 1]},
    "sigmas": {"prompt": "x", "sigmas": [2.0, 1.0]},
}


@pytest.mark.filterwarnings("ignore:.*callback:FutureWarning")
@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_raises_what_diffusers_raises(name: str) -> None:
    messages: list[str] = []
    types: list[type[Exception]] = []
    for pipeline in _pair():
        with pytest.raises((ValueError, TypeError)) as caught:
            pipeline(**WRONG_CALLS[name], num_inference_steps=1, output_type="latent")
        types.append(caught.type)
        messages.append(str(caught.value))
    assert issubclass(types[0], types[1])
    start = messages[1].split(".")[0].split(":")[0].split("<class")[0][:120].rstrip()
    assert messages[0].startswith(start), messages


def test_prompts_are_encoded_as_in_diffusers() -> None:
    ours, oracle = _pair()
    for arguments in (
        ("a cat", "cpu", 2, True, "a dog"),
        (["a cat", "a boat"], "cpu", 1, False, None),
        (["a cat", "a boat"], "cpu", 3, True, None),
    ):
        for mine, theirs in zip(
            ours.encode_prompt(*arguments), oracle.encode_prompt(*arguments), strict=True
        ):
            assert (mine is None) == (theirs is None)
            if theirs is not None:
                assert distance(mine, theirs) < 1e-5
    with pytest.warns(FutureWarning):
        mine = ours._encode_prompt("a cat", "cpu", 1, True)
    with pytest.warns(FutureWarning):
        theirs = oracle._encode_prompt("a cat", "cpu", 1, True)
    assert distance(mine, theirs) < 1e-5


@pytest.mark.parametrize("width", [512, 33])
def test_the_guidance_scale_is_embedded_as_in_diffusers(width: int) -> None:
    ours, oracle = _pair()
    w = torch.tensor([0.5, 6.5, 11.0])
    mine = ours.get_guidance_scale_embedding(w, width)
    assert torch.equal(mine, oracle.get_guidance_scale_embedding(w, width))


def test_the_helpers_of_the_module_compute_what_diffusers_computes() -> None:
    a, b = torch.randn(2, 3, 4, 8, 8, generator=seeded(0))
    mine = stable_diffusion.rescale_noise_cfg(a, b, 0.7)
    assert torch.allclose(mine, oracle_module.rescale_noise_cfg(a, b, 0.7), atol=1e-6)
    timesteps, steps = stable_diffusion.retrieve_timesteps(tiny_scheduler(), 7, "cpu")
    oracle = diffusers.PNDMScheduler.from_config(dict(tiny_scheduler().config))
    expected, count = oracle_module.retrieve_timesteps(oracle, 7, "cpu")
    assert timesteps.tolist() == expected.tolist()
    assert steps == count


def test_latents_are_prepared_from_the_same_draws() -> None:
    ours, oracle = _pair()
    for generators in (seeded(1), seeded(1, 2, 3)):
        arguments = (3, 4, 16, 24, torch.float32, torch.device("cpu"))
        draws = []
        for pipeline in (ours, oracle):
            both = generators if isinstance(generators, list) else [generators]
            for generator in both:
                generator.manual_seed(11)
            draws.append(pipeline.prepare_latents(*arguments, generators))
        assert torch.equal(*draws)


def test_decoding_the_older_way_gives_the_same_array() -> None:
    ours, oracle = _pair()
    latents = torch.randn(2, 4, 8, 8, generator=seeded(0))
    with torch.no_grad(), pytest.warns(FutureWarning):
        arrays = [pipeline.decode_latents(latents) for pipeline in (ours, oracle)]
    assert arrays[0].shape == arrays[1].shape == (2, 16, 16, 3)
    assert abs(arrays[0] - arrays[1]).max() < 1e-5


def test_the_step_arguments_are_those_that_the_scheduler_takes() -> None:
    ours, oracle = _pair()
    generator = seeded(0)
    for name in ("PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "LCMScheduler"):
        ours.scheduler = tiny_scheduler(name)
        oracle.scheduler = getattr(diffusers, name).from_config(dict(ours.scheduler.config))
        mine = ours.prepare_extra_step_kwargs(generator, 0.5)
        assert mine == oracle.prepare_extra_step_kwargs(generator, 0.5)
    ours.scheduler = tiny_scheduler()
    oracle.scheduler = diffusers.PNDMScheduler.from_config(dict(ours.scheduler.config))


def test_a_pipeline_of_diffusers_becomes_ours_with_shared_components() -> None:
    _, oracle = _pair()
    ours = StableDiffusionPipeline.from_pipe(oracle)
    assert ours.unet is oracle.unet
    assert ours.config.requires_safety_checker is False
    assert isinstance(ours, DiffusionPipeline)
    assert ours.components.keys() == oracle.components.keys()
