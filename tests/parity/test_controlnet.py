"""ControlNets against diffusers: the network alone, and the three pipelines with one or several."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel as OracleMulti
from PIL import Image

from sfumato.models.controlnet import ControlNetModel, MultiControlNetModel
from sfumato.pipelines.controlnet import StableDiffusionControlNetPipeline
from sfumato.pipelines.controlnet_img2img import StableDiffusionControlNetImg2ImgPipeline
from sfumato.pipelines.controlnet_inpaint import StableDiffusionControlNetInpaintPipeline
from tests.parity.calls import (
    assert_alike,
    call_of,
    call_with_strength,
    latents_of,
    picture,
    prompts_of,
    scheduler_fields,
)
from tests.parity.oracle_pipeline import distance, oracle_network, oracle_of, oracle_scheduler
from tests.parity.surface import (
    assert_same_attributes,
    assert_same_complaint,
    assert_same_signatures,
)
from tests.pipelines.tiny import (
    WIDTH,
    seeded,
    tiny_controlnet,
    tiny_parts,
    tiny_scheduler,
    tiny_unet,
)

PIPELINES: dict[str, Any] = {
    "text": StableDiffusionControlNetPipeline,
    "image": StableDiffusionControlNetImg2ImgPipeline,
    "mask": StableDiffusionControlNetInpaintPipeline,
    "mask 9": StableDiffusionControlNetInpaintPipeline,
}
SCHEDULERS = (
    "PNDMScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "HeunDiscreteScheduler",
)


@pytest.mark.parametrize("seed", range(8))
def test_networks_of_random_configurations_give_the_same_features(seed: int) -> None:
    rng = random.Random(f"controlnet {seed}")
    fields: dict[str, Any] = {
        "layers_per_block": rng.choice([1, 2]),
        "use_linear_projection": rng.random() < 0.5,
        "attention_head_dim": rng.choice([4, (2, 4)]),
        "controlnet_conditioning_channel_order": rng.choice(["rgb", "bgr"]),
        "global_pool_conditions": rng.random() < 0.3,
        "conditioning_channels": rng.choice([1, 3]),
        "num_class_embeds": rng.choice([None, 7]),
        "mid_block_type": rng.choice(["UNetMidBlock2DCrossAttn"] * 2 + ["UNetMidBlock2D"]),
        "upcast_attention": rng.random() < 0.3,
        "transformer_layers_per_block": rng.choice([1, (1, 2)]),
    }
    ours = tiny_controlnet(seed, **fields)
    oracle = oracle_network(ours)
    size = rng.choice([(8, 8), (6, 10)])
    call: dict[str, Any] = {
        "sample": torch.randn(2, 4, *size, generator=seeded(seed)),
        "timestep": torch.tensor(rng.randrange(1000)),
        "encoder_hidden_states": torch.randn(2, 9, WIDTH, generator=seeded(seed)),
        "controlnet_cond": torch.rand(
            2, fields["conditioning_channels"], *(2 * s for s in size), generator=seeded(seed)
        ),
        "conditioning_scale": rng.choice([1.0, 0.4]),
        "guess_mode": rng.random() < 0.5,
    }
    if fields["num_class_embeds"]:
        call["class_labels"] = torch.tensor([1, 5])
    with torch.no_grad():
        mine, expected = ours(**call), oracle(**call)
    pairs = zip(
        (*mine.down_block_res_samples, mine.mid_block_res_sample),
        (*expected.down_block_res_samples, expected.mid_block_res_sample),
        strict=True,
    )
    assert all(distance(a, b) < 1e-5 for a, b in pairs), fields


def test_a_network_made_from_a_unet_has_its_weights_and_changes_nothing() -> None:
    unet = tiny_unet(3)
    ours = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    oracle = getattr(diffusers, "ControlNetModel").from_unet(  # noqa: B009
        oracle_network(unet), conditioning_embedding_out_channels=(8, 16)
    )
    mine, expected = ours.state_dict(), oracle.state_dict()
    assert mine.keys() == expected.keys()
    copied = [name for name in mine if not name.startswith("controlnet_")]
    assert all(torch.equal(mine[name], expected[name]) for name in copied)
    down, mid = ours(
        torch.randn(1, 4, 8, 8),
        1,
        torch.randn(1, 5, WIDTH),
        torch.rand(1, 3, 16, 16),
        return_dict=False,
    )
    assert not any(features.any() for features in (*down, mid))


def test_a_network_is_saved_for_diffusers_and_loaded_from_it(tmp_path: Path) -> None:
    ours = tiny_controlnet(4)
    ours.save_pretrained(tmp_path / "ours")
    oracle = getattr(diffusers, "ControlNetModel").from_pretrained(  # noqa: B009
        str(tmp_path / "ours"), low_cpu_mem_usage=False
    )
    oracle.save_pretrained(str(tmp_path / "theirs"))
    again = ControlNetModel.from_pretrained(tmp_path / "theirs").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.state_dict().items())


@cache
def _pair(kind: str, nets: int = 1) -> tuple[Any, Any]:
    parts = tiny_parts(1)
    parts["unet"] = tiny_unet(7, in_channels=9 if kind == "mask 9" else 4)
    each = [tiny_controlnet(20 + index) for index in range(nets)]
    ours = PIPELINES[kind](**parts, controlnet=each if nets > 1 else each[0])
    ours.set_progress_bar_config(disable=True)
    if nets == 1:
        return ours, oracle_of(ours)
    single = PIPELINES[kind](**parts, controlnet=each[0])
    oracle = oracle_of(single)
    oracle.register_modules(controlnet=OracleMulti([oracle_network(net) for net in each]))
    return ours, oracle


def _with_scheduler(kind: str, nets: int, name: str, **fields: Any) -> tuple[Any, Any]:
    ours, oracle = _pair(kind, nets)
    ours.scheduler = tiny_scheduler(name, **fields)
    oracle.scheduler = oracle_scheduler(ours.scheduler)
    return ours, oracle


def _call(rng: random.Random, kind: str, nets: int, oracle: Any) -> dict[str, Any]:
    arguments = call_of(rng, oracle) if kind == "text" else call_with_strength(rng, oracle)
    arguments.pop("latents", None)
    size = {"height": rng.choice([16, 24]), "width": rng.choice([16, 32])}
    arguments |= size
    count = rng.choice([1, prompts_of(arguments)])
    controls = [picture(rng, 16, 16, count) for _ in range(nets)]
    controls = [c[None] if getattr(c, "ndim", 4) == 3 else c for c in controls]
    if nets > 1:  # lists in a list would be read as pictures per prompt
        controls = [torch.rand(count, 3, *size.values(), generator=seeded(i)) for i in range(nets)]
        arguments["controlnet_conditioning_scale"] = [rng.choice([0.3, 1.0]) for _ in range(nets)]
    elif rng.random() < 0.6:
        arguments["controlnet_conditioning_scale"] = rng.choice([0.0, 0.5, 1.3])
    arguments["image" if kind == "text" else "control_image"] = (
        controls if nets > 1 else controls[0]
    )
    if kind != "text":
        arguments["image"] = picture(rng, 16, 24)
    if kind.startswith("mask"):
        arguments["mask_image"] = torch.rand(1, 1, *size.values(), generator=seeded(3))
    arguments["guess_mode"] = rng.random() < 0.4
    if rng.random() < 0.5:
        arguments["control_guidance_start"] = rng.choice([0.0, 0.3])
        arguments["control_guidance_end"] = rng.choice([0.6, 1.0])
    return arguments


@pytest.mark.filterwarnings("ignore:You have passed:FutureWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("kind", PIPELINES)
def test_random_calls_give_the_latents_of_diffusers(kind: str, name: str) -> None:
    rng = random.Random(f"control {kind} {name}")
    for nets in (1, 2):
        fields = scheduler_fields(rng, name)
        pair = _with_scheduler(kind, nets, name, **fields)
        arguments = _call(rng, kind, nets, pair[1])
        wide = fields.get("rescale_betas_zero_snr")
        report = f"{nets} nets: {fields} {arguments}"
        assert_alike(pair, arguments, report, 2e-3 if wide else 1e-4)


def test_the_picture_has_the_size_of_the_control_picture_unless_told() -> None:
    pipe = _pair("text")[0]
    control = torch.rand(1, 3, 24, 40, generator=seeded(0))
    call: dict[str, Any] = {"num_inference_steps": 1, "generator": seeded(0)}
    assert pipe("a boat", control, **call).images[0].size == (40, 24)
    assert pipe("a boat", control, height=16, width=16, **call).images[0].size == (16, 16)


def test_a_crop_around_the_mask_is_that_of_diffusers() -> None:
    pixels = (np.random.default_rng(0).random((2, 48, 40, 3)) * 255).astype(np.uint8)
    mask = Image.new("L", (40, 48))
    mask.paste(255, (22, 10, 36, 16))
    drawn = []
    for pipeline in _with_scheduler("mask", 1, "DDIMScheduler"):
        result = pipeline(
            "a boat",
            image=Image.fromarray(pixels[0]),
            mask_image=mask,
            control_image=Image.fromarray(pixels[1]),
            height=16,
            width=24,
            padding_mask_crop=4,
            num_inference_steps=3,
            generator=seeded(4),
        ).images[0]
        drawn.append(np.asarray(result, dtype=np.float64))
    assert np.abs(drawn[0] - drawn[1]).max() <= 1


def test_callbacks_see_and_change_the_control_picture_as_in_diffusers() -> None:
    results = []
    for pipeline in _with_scheduler("text", 1, "DDIMScheduler"):

        def change(p: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            return {"image": tensors["image"] * 0.1} if i == 1 else tensors

        call = {
            "prompt": "a boat",
            "image": torch.rand(1, 3, 16, 16, generator=seeded(0)),
            "num_inference_steps": 4,
            "seeds": [1],
            "callback_on_step_end": change,
            "callback_on_step_end_tensor_inputs": ["image"],
        }
        results.append(latents_of(pipeline, call))
    assert distance(*results) < 1e-4


@pytest.mark.parametrize("kind", ["text", "image", "mask"])
def test_the_interface_is_that_of_diffusers(kind: str) -> None:
    cls = PIPELINES[kind]
    names = ["__init__", "__call__", "check_image"]
    names += [] if kind == "mask" else ["check_inputs", "prepare_latents"]
    names += {"text": ["prepare_image"], "image": ["prepare_control_image"], "mask": []}[kind]
    assert_same_signatures(cls, *names)
    assert_same_attributes(cls)


WRONG_CALLS: dict[str, tuple[int, dict[str, Any]]] = {
    "no picture": (1, {"image": None}),
    "pictures": (1, {"prompt": ["x"] * 3, "image": torch.zeros(2, 3, 16, 16)}),
    "scale": (1, {"controlnet_conditioning_scale": [1.0]}),
    "start after end": (1, {"control_guidance_start": 0.6, "control_guidance_end": 0.5}),
    "start": (1, {"control_guidance_start": -0.1}),
    "end": (1, {"control_guidance_end": 1.1}),
    "lengths": (1, {"control_guidance_start": [0.0, 0.0], "control_guidance_end": [1.0]}),
    "one picture for two": (2, {}),
    "three pictures for two": (2, {"image": [torch.zeros(1, 3, 16, 16)] * 3}),
    "three starts for two": (
        2,
        {"image": [torch.zeros(1, 3, 16, 16)] * 2, "control_guidance_start": [0.0] * 3},
    ),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_raises_what_diffusers_raises(name: str) -> None:
    nets, wrong = WRONG_CALLS[name]
    call = {"prompt": "x", "image": torch.zeros(1, 3, 16, 16), "num_inference_steps": 2}
    assert_same_complaint(_pair("text", nets), {**call, **wrong})


def test_several_networks_are_saved_beside_each_other(tmp_path: Path) -> None:
    nets = [tiny_controlnet(1), tiny_controlnet(2)]
    MultiControlNetModel(nets).save_pretrained(tmp_path / "net")
    for name, net in zip(("net", "net_1"), nets, strict=True):
        loaded = ControlNetModel.from_pretrained(tmp_path / name).state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in net.state_dict().items())
