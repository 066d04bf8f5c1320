"""T2I-Adapters against diffusers: the network, and the pipeline with one or several."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from sfumato.models.t2i_adapter import KINDS, T2IAdapter
from sfumato.pipelines.t2i_adapter import StableDiffusionAdapterPipeline
from tests.parity.calls import assert_alike, call_of, prompts_of, scheduler_fields
from tests.parity.oracle_pipeline import distance, oracle_network, oracle_of, oracle_scheduler
from tests.parity.surface import (
    assert_same_attributes,
    assert_same_complaint,
    assert_same_signatures,
)
from tests.pipelines.tiny import seeded, tiny_parts, tiny_scheduler, tiny_unet


def _adapter(seed: int = 0, **fields: Any) -> T2IAdapter:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        own = {"channels": (32, 64), "num_res_blocks": 1, "downscale_factor": 2, **fields}
        return T2IAdapter(**own).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [(8, 12, 16), (8, 8, 16, 16)])
def test_networks_give_the_same_features(kind: str, channels: tuple[int, ...]) -> None:
    if kind == "full_adapter_xl":  # whose third block takes the second's width for its own
        channels = (8, 16, 16, 16)
    ours = _adapter(channels=channels, adapter_type=kind, num_res_blocks=2, in_channels=1)
    oracle = getattr(diffusers, "T2IAdapter").from_config(ours.config.to_dict())  # noqa: B009
    oracle.load_state_dict(ours.state_dict(), strict=True)
    x = torch.rand(2, 1, 24, 40, generator=seeded(1))
    assert ours.total_downscale_factor == oracle.total_downscale_factor
    with torch.no_grad():
        pairs = list(zip(ours(x), oracle(x), strict=True))
    assert all(distance(a, b) < 1e-5 for a, b in pairs)


@cache
def _pair(adapters: int = 1) -> tuple[Any, Any]:
    kinds = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    parts = {**tiny_parts(1), "unet": tiny_unet(7, **kinds)}
    each = [_adapter(index) for index in range(adapters)]
    ours = StableDiffusionAdapterPipeline(**parts, adapter=each if adapters > 1 else each[0])
    ours.set_progress_bar_config(disable=True)
    single = StableDiffusionAdapterPipeline(**parts, adapter=each[0])
    oracle = oracle_of(single)
    if adapters > 1:
        multi = diffusers.models.adapter.MultiAdapter([oracle_network(net) for net in each])
        oracle.register_modules(adapter=multi)
    return ours, oracle


@pytest.mark.parametrize("adapters", [1, 2])
@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerAncestralDiscreteScheduler"])
def test_random_calls_give_the_latents_of_diffusers(name: str, adapters: int) -> None:
    rng = random.Random(f"adapter {name} {adapters}")
    ours, oracle = _pair(adapters)
    for _ in range(2):
        fields = scheduler_fields(rng, name)
        ours.scheduler = tiny_scheduler(name, **fields)
        oracle.scheduler = oracle_scheduler(ours.scheduler)
        arguments = call_of(rng, oracle, height=16, width=24)
        arguments.pop("latents", None)
        arguments |= {"height": 16, "width": 24}
        count = prompts_of(arguments)
        images = [torch.rand(count, 3, 16, 24, generator=seeded(i)) for i in range(adapters)]
        arguments["image"] = images if adapters > 1 else images[0]
        scales = [rng.choice([0.4, 1.0]) for _ in range(adapters)]
        arguments["adapter_conditioning_scale"] = scales if adapters > 1 else scales[0]
        wide = fields.get("rescale_betas_zero_snr")
        report = f"{fields} {arguments}"
        assert_alike((ours, oracle), arguments, report, 2e-3 if wide else 1e-4)


def test_pictures_are_read_as_in_diffusers() -> None:
    pixels = torch.rand(30, 50, 3, generator=seeded(0))
    image = Image.fromarray((pixels.numpy() * 255).astype("uint8"))
    drawn = []
    for pipeline in _pair():
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        call: dict[str, Any] = {"num_inference_steps": 2, "generator": seeded(1)}
        call |= {"height": 32, "width": 48}
        drawn.append(pipeline("a boat", image, output_type="latent", **call).images)
    assert distance(*drawn) < 1e-4


def test_the_interface_is_that_of_diffusers() -> None:
    names = ("__init__", "__call__", "check_inputs", "prepare_latents")
    assert_same_signatures(StableDiffusionAdapterPipeline, *names)
    assert_same_attributes(StableDiffusionAdapterPipeline)


@pytest.mark.parametrize(
    ("adapters", "wrong"),
    [
        (1, {"height": 12, "width": 16}),
        (1, {"callback_steps": None}),
        (2, {"image": [torch.zeros(1, 3, 16, 16)] * 3}),
    ],
)
def test_a_wrong_call_raises_what_diffusers_raises(adapters: int, wrong: dict[str, Any]) -> None:
    call = {"prompt": "x", "image": torch.zeros(1, 3, 16, 16), "num_inference_steps": 2}
    assert_same_complaint(_pair(adapters), {**call, **wrong})
