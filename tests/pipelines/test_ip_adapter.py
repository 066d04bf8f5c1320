"""The life of IP-Adapters on a pipeline: loading, scales, other adapters, calls, unloading."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import PerturbedAttentionGuidance
from sfumato.errors import InputError
from sfumato.models.ip_attention import IPAdapterAttnProcessor2_0
from sfumato.models.processors import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from sfumato.pipelines.callbacks import SDCFGCutoffCallback
from sfumato.pipelines.savings import TextGate, TokenMerging
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.pipelines.ip_adapters import (
    KINDS,
    load,
    picture_pipeline,
    random_adapter,
    random_embeds,
    set_face_tokens,
)
from tests.pipelines.tiny import seeded, tiny_unet, weights_of

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def _picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _draw(pipeline: Any, *pictures: Any, **arguments: Any) -> torch.Tensor:
    options = {"num_inference_steps": 2, "generator": seeded(1), "output_type": "latent"}
    if pictures:
        arguments["ip_adapter_image"] = list(pictures)
    return pipeline("a boat", **{**options, **arguments}).images


def _loaded(*kinds: str, **changes: Any) -> StableDiffusionPipeline:
    pipeline = picture_pipeline(**changes)
    load(pipeline, *(random_adapter(pipeline.unet, kind, i) for i, kind in enumerate(kinds)))
    return pipeline


def _processors(unet: Any) -> dict[str, Any]:
    return {path: processor for path, processor in unet.attn_processors.items() if "attn2" in path}


@pytest.mark.parametrize("kind", KINDS)
def test_unloading_brings_back_the_unet_bit_by_bit(kind: str) -> None:
    pipeline = picture_pipeline()
    unet = pipeline.unet
    weights, config, processors = weights_of(unet), unet.config, unet.attn_processors
    drawn, words = _draw(pipeline), repr(unet)
    random_state = torch.random.get_rng_state()
    load(pipeline, random_adapter(unet, kind, loras=kind.startswith("face")))
    assert unet.config.encoder_hid_dim_type == "ip_image_proj"
    assert torch.equal(torch.random.get_rng_state(), random_state)
    pipeline.unload_ip_adapter()
    assert unet.config is config and unet.attn_processors == processors
    assert unet.encoder_hid_proj is None and repr(unet) == words
    assert unet.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in unet.state_dict().items())
    assert not pipeline.get_list_adapters()
    assert torch.equal(_draw(pipeline), drawn)
    pipeline.unload_ip_adapter()  # nothing is left to unload


def test_a_projection_of_the_text_waits_while_an_adapter_takes_its_place() -> None:
    unet = tiny_unet(encoder_hid_dim=20, encoder_hid_dim_type="text_proj")
    weights, pipeline = weights_of(unet), picture_pipeline(unet=unet)
    inputs = {
        "sample": torch.randn(1, 4, 8, 8, generator=seeded(1)),
        "timestep": 5,
        "encoder_hidden_states": torch.randn(1, 7, 20, generator=seeded(2)),
        "added_cond_kwargs": {"image_embeds": [random_embeds("plain", 1, 1)]},
    }
    with torch.no_grad():
        before = unet(**inputs).sample
        load(pipeline, random_adapter(unet))
        assert "text_encoder_hid_proj.weight" in unet.state_dict()
        assert not torch.equal(unet(**inputs).sample, before)
        pipeline.set_ip_adapter_scale(0.0)
        assert torch.allclose(unet(**inputs).sample, before, atol=1e-6)
        assert unet.own_state().keys() == weights.keys()
        pipeline.unload_ip_adapter()
        assert torch.equal(unet(**inputs).sample, before)
    assert unet.state_dict().keys() == weights.keys()


def test_loading_again_takes_the_place_of_what_was_loaded() -> None:
    pipeline = _loaded("plain", "plus")
    load(pipeline, random_adapter(pipeline.unet, "full", 7))
    once = picture_pipeline()
    load(once, random_adapter(once.unet, "full", 7))
    assert torch.equal(_draw(pipeline, _picture()), _draw(once, _picture()))
    pipeline.unload_ip_adapter()
    assert torch.equal(_draw(pipeline), _draw(picture_pipeline()))


def test_a_scale_of_0_draws_as_without_pictures_and_pictures_count_otherwise() -> None:
    pipeline = _loaded("plain", "plus")
    plain = _draw(picture_pipeline())
    drawn = [_draw(pipeline, _picture(i), _picture(2)) for i in range(2)]
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-3)
    pipeline.set_ip_adapter_scale(0.0)
    assert torch.allclose(_draw(pipeline, _picture(0), _picture(1)), plain, atol=1e-5)
    pipeline.set_ip_adapter_scale([0.0, 0.8])
    alone = _draw(pipeline, _picture(0), _picture(2))
    assert torch.equal(_draw(pipeline, _picture(1), _picture(2)), alone)


def test_a_dictionary_of_scales_lets_other_blocks_alone() -> None:
    pipeline = _loaded("plain")
    pipeline.set_ip_adapter_scale({"up": {"block_0": [0.0, 0.7]}})
    scales = {path: processor.scale for path, processor in _processors(pipeline.unet).items()}
    assert {path: scale for path, scale in scales.items() if scale != [0.0]} == {
        "up_blocks.0.attentions.1.transformer_blocks.0.attn2.processor": [0.7]
    }


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ([1.0, 1.0], "Cannot assign 2 scale_configs to 1 IP-Adapter."),
        (float("nan"), "finite"),
        ("strong", "has to be a number"),
        ({"middle": 1.0}, "Did you mean 'mid'"),
        ({"up": {"block_7": 1.0}}, "block_7"),
        ({"up": {"block_0": [1.0] * 5}}, "5 numbers for 2 layers"),
        ({"mid": [0.1, 0.2]}, "2 numbers for 1 layers"),
    ],
)
def test_a_wrong_scale_is_refused_and_changes_nothing(scale: Any, message: str) -> None:
    pipeline = _loaded("plain")
    pipeline.set_ip_adapter_scale(0.4)
    with pytest.raises(InputError, match=message):
        pipeline.set_ip_adapter_scale(scale)
    assert all(p.scale == [0.4] for p in _processors(pipeline.unet).values())


def test_a_scale_without_an_adapter_is_an_error() -> None:
    with pytest.raises(InputError, match="No IP-Adapter is loaded"):
        picture_pipeline().set_ip_adapter_scale(1.0)


@pytest.mark.parametrize("first", [True, False])
def test_attention_can_be_sliced_before_and_after_loading(first: bool) -> None:
    whole = _draw(_loaded("plain", "plus"), _picture(), _picture(1))
    pipeline = picture_pipeline()
    adapters = [random_adapter(pipeline.unet, kind, i) for i, kind in enumerate(("plain", "plus"))]
    if first:
        pipeline.enable_attention_slicing(1)
        load(pipeline, *adapters)
    else:
        load(pipeline, *adapters)
        pipeline.enable_attention_slicing(1)
    sliced = _processors(pipeline.unet).values()
    assert all(isinstance(p.kernel, SlicedAttnProcessor) for p in sliced)
    assert torch.allclose(_draw(pipeline, _picture(), _picture(1)), whole, atol=1e-4)
    pipeline.unload_ip_adapter()
    kinds = {type(p) for p in pipeline.unet.attn_processors.values()}
    assert kinds == {SlicedAttnProcessor}


def test_other_ways_to_compute_attention_keep_the_pictures() -> None:
    pipeline = _loaded("plain")
    drawn = _draw(pipeline, _picture())
    pipeline.unet.set_default_attn_processor()
    assert all(type(p.kernel) is AttnProcessor for p in _processors(pipeline.unet).values())
    assert torch.allclose(_draw(pipeline, _picture()), drawn, atol=1e-4)
    pipeline.fuse_qkv_projections(vae=False)
    assert torch.allclose(_draw(pipeline, _picture()), drawn, atol=1e-4)
    pipeline.unfuse_qkv_projections(vae=False)
    pipeline.unet.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(InputError, match="cannot attend to pictures"):
        _draw(pipeline, _picture())
    pipeline.unload_ip_adapter()
    assert torch.equal(_draw(pipeline), _draw(picture_pipeline()))


def test_a_processor_of_ones_own_is_there_again_after_unloading() -> None:
    class Own:
        def __call__(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            return AttnProcessor2_0()(attn, hidden_states, *args, **kwargs)

    pipeline, own = picture_pipeline(), Own()
    pipeline.unet.set_attn_processor(own)
    load(pipeline, random_adapter(pipeline.unet))
    kinds = {type(p) for p in _processors(pipeline.unet).values()}
    assert kinds == {IPAdapterAttnProcessor2_0}
    pipeline.unload_ip_adapter()
    assert all(p is own for p in pipeline.unet.attn_processors.values())


def _lora(unet: Any) -> dict[str, torch.Tensor]:
    path = next(p for p, _ in unet.named_modules() if p.endswith("attn2.to_k"))
    layer = unet.get_submodule(path)
    return {
        f"unet.{path}.lora_A.weight": torch.ones(2, layer.in_features),
        f"unet.{path}.lora_B.weight": torch.ones(layer.out_features, 2),
    }


def test_loras_and_pictures_work_together_in_any_order() -> None:
    results = []
    for lora_first in (True, False):
        pipeline = picture_pipeline()
        steps: list[Callable[[], Any]] = [
            lambda pipeline=pipeline: pipeline.load_lora_weights(_lora(pipeline.unet), "style"),
            lambda pipeline=pipeline: load(pipeline, random_adapter(pipeline.unet)),
        ]
        for step in steps if lora_first else reversed(steps):
            step()
        results.append(_draw(pipeline, _picture()))
        pipeline.fuse_lora()
        assert torch.allclose(_draw(pipeline, _picture()), results[0], atol=1e-4)
        pipeline.unfuse_lora()
        pipeline.unload_ip_adapter()
        with_lora = _draw(pipeline)
        pipeline.unload_lora_weights()
        assert not torch.equal(with_lora, _draw(pipeline))
        assert torch.equal(_draw(pipeline), _draw(picture_pipeline()))
    assert torch.equal(*results)


def test_the_lora_of_a_face_acts_beside_others_and_goes_with_the_adapter() -> None:
    pipeline = picture_pipeline()
    pipeline.load_lora_weights(_lora(pipeline.unet), "style")
    load(pipeline, random_adapter(pipeline.unet, "face", loras=True))
    assert pipeline.get_active_adapters() == ["style", "faceid_0"]
    load(pipeline, *(random_adapter(pipeline.unet, "face", i, loras=True) for i in range(2)))
    assert pipeline.get_active_adapters() == ["style", "faceid_0", "faceid_1"]
    pipeline.unload_ip_adapter()
    assert pipeline.get_list_adapters() == {"unet": ["style"]}


def test_a_saved_pipeline_has_the_unet_alone_and_the_image_encoder(tmp_path: Path) -> None:
    pipeline = _loaded("plain")
    pipeline.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.unet.config == picture_pipeline().unet.config
    assert torch.equal(_draw(again), _draw(picture_pipeline()))
    load(again, random_adapter(again.unet))
    assert torch.allclose(_draw(again, _picture()), _draw(pipeline, _picture()), atol=1e-5)


def test_a_pipeline_made_from_another_has_its_adapters() -> None:
    pipeline = _loaded("plain")
    other = StableDiffusionPipeline.from_pipe(pipeline)
    other.set_progress_bar_config(disable=True)
    assert torch.equal(_draw(other, _picture()), _draw(pipeline, _picture()))


def test_threads_with_different_pictures_do_not_meet() -> None:
    pipeline = _loaded("plain")
    alone = [_draw(pipeline, _picture(i)) for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda i: _draw(pipeline, _picture(i)), range(3)))
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
@pytest.mark.parametrize("device", DEVICES)
def test_networks_that_wait_in_main_memory_draw_with_pictures(name: str, device: str) -> None:
    drawn = _draw(_loaded("plain", "plus"), _picture(), _picture(1))
    pipeline = picture_pipeline()
    getattr(pipeline, name)(device=device)
    before = type(pipeline._offload)
    load(pipeline, *(random_adapter(pipeline.unet, kind, i) for i, kind in enumerate(KINDS[:2])))
    assert type(pipeline._offload) is before
    moved = _draw(pipeline, _picture(), _picture(1))
    assert torch.allclose(moved.cpu(), drawn, atol=1e-3 if device == "cuda" else 1e-4)
    pipeline.unload_ip_adapter()
    again = _draw(pipeline)
    assert torch.allclose(again.cpu(), _draw(picture_pipeline()), atol=1e-3)


def test_guidance_can_end_during_a_call() -> None:
    pipeline = _loaded("plain")
    callback = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    steps = {"num_inference_steps": 4, "callback_on_step_end": callback}
    drawn = _draw(pipeline, _picture(), **steps)
    assert not torch.equal(drawn, _draw(pipeline, _picture(1), **steps))


@pytest.mark.parametrize("more", [{}, {"guidance": PerturbedAttentionGuidance(2.0)}])
def test_masks_count_while_the_text_is_gated(more: Any) -> None:
    pipeline = _loaded("plain")
    left = torch.zeros(1, 1, 16, 16)
    left[..., :8] = 1
    masked = {"cross_attention_kwargs": {"ip_adapter_masks": [left]}, **more}
    drawn = _draw(pipeline, _picture(), savings=TextGate(1.0), **masked)
    assert torch.allclose(drawn, _draw(pipeline, _picture(), **masked), atol=1e-6)
    gated = {"num_inference_steps": 4, "savings": [TextGate(0.5), TokenMerging(0.5)]}
    drawn = _draw(pipeline, _picture(), **gated, **masked)
    assert not torch.allclose(drawn, _draw(pipeline, _picture(), **gated, **more), atol=1e-3)


def test_a_call_in_16_bits_takes_embeddings_in_32() -> None:
    pipeline = _loaded("plain", "face plus").to(torch.bfloat16)
    set_face_tokens(pipeline.unet, 2, 1)
    embeds = [random_embeds("plain", 2, 1), random_embeds("face plus", 2, 1)]
    drawn = _draw(pipeline, ip_adapter_image_embeds=embeds)
    assert drawn.dtype == torch.bfloat16 and drawn.isfinite().all()


WRONG_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "the call needs `ip_adapter_image`"),
    "two pictures": ({"ip_adapter_image": [_picture()] * 2}, "Got 2 images and 1 IP Adapters"),
    "two embeddings": (
        {"ip_adapter_image_embeds": [random_embeds("plain", 2, 1)] * 2},
        "Got 2 tensors and 1 IP Adapters",
    ),
    "both": (
        {
            "ip_adapter_image": _picture(),
            "ip_adapter_image_embeds": [random_embeds("plain", 2, 1)],
        },
        "Provide either",
    ),
    "width": ({"ip_adapter_image_embeds": [torch.zeros(2, 1, 5)]}, r"12\) but are \(2, 1, 5\)"),
    "kind": ({"ip_adapter_image_embeds": [random_embeds("plus", 2, 1)]}, "another kind"),
    "one half": ({"ip_adapter_image_embeds": [random_embeds("plain", 1, 1)]}, "2 parts"),
    "too many": ({"ip_adapter_image_embeds": [random_embeds("plain", 6, 1)]}, "for a batch of 6"),
    "mask of another kind": (
        {
            "ip_adapter_image": _picture(),
            "cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(8, 8)]},
        },
        "Please use `IPAdapterMaskProcessor`",
    ),
    "masks": (
        {
            "ip_adapter_image": _picture(),
            "cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(1, 3, 8, 8)]},
        },
        r"Number of masks \(3\) does not match number of ip images \(1\)",
    ),
    "lists of masks": (
        {
            "ip_adapter_image": _picture(),
            "cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(1, 1, 8, 8)] * 2},
        },
        "Length of ip_adapter_masks array",
    ),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_says_what_is_wrong(name: str) -> None:
    arguments, message = WRONG_CALLS[name]
    with pytest.raises(InputError, match=message):
        _draw(_loaded("plain"), **arguments)


def test_a_face_without_its_picture_says_what_is_missing() -> None:
    pipeline = _loaded("face plus")
    with pytest.raises(InputError, match="clip_embeds"):
        _draw(pipeline, ip_adapter_image_embeds=[random_embeds("face plus", 2, 1)])


def test_without_an_image_encoder_embeddings_are_needed(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = picture_pipeline(image_encoder=None, feature_extractor=None)
    with caplog.at_level(logging.WARNING):
        load(pipeline, random_adapter(pipeline.unet))
    assert "No image encoder is loaded" in caplog.text
    assert pipeline.feature_extractor is not None
    with pytest.raises(InputError, match="needs an `image_encoder`"):
        _draw(pipeline, _picture())
    assert _draw(pipeline, ip_adapter_image_embeds=[random_embeds("plain", 2, 1)]).isfinite().all()
