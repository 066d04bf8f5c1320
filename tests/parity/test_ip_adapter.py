"""IP-Adapters against diffusers: names of weights, projections, attention, masks, whole calls."""

from __future__ import annotations

import random
import warnings
from copy import deepcopy
from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.callbacks import IPAdapterScaleCutoffCallback as OracleCutoff
from diffusers.image_processor import IPAdapterMaskProcessor as OracleMaskProcessor
from PIL import Image

from sfumato.pipelines.callbacks import IPAdapterScaleCutoffCallback
from sfumato.pipelines.instruct_pix2pix import StableDiffusionInstructPix2PixPipeline
from sfumato.pipelines.ip_adapter_masks import IPAdapterMaskProcessor
from tests.parity.oracle_pipeline import distance, oracle_network, oracle_of
from tests.pipelines.ip_adapters import (
    KINDS,
    VISION,
    load,
    picture_pipeline,
    random_adapter,
    random_embeds,
    set_face_tokens,
)
from tests.pipelines.tiny import WIDTH, seeded, tiny_unet

ORACLES: Any = diffusers


@cache
def _parts() -> tuple[Any, Any]:
    ours = picture_pipeline()
    oracle = oracle_of(ours)
    encoder = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION))
    assert ours.image_encoder is not None
    encoder.load_state_dict(ours.image_encoder.state_dict())
    extractor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    )
    oracle.register_modules(image_encoder=encoder.eval(), feature_extractor=extractor)
    return ours, oracle


def _pair() -> tuple[Any, Any]:
    """Ours and the oracle with the same weights; the UNets are copies, the rest is shared."""
    pair = []
    for pipeline in _parts():
        parts = {**pipeline.components, "unet": deepcopy(pipeline.unet)}
        new = type(pipeline)(**parts, requires_safety_checker=False)
        new.set_progress_bar_config(disable=True)
        pair.append(new)
    return pair[0], pair[1]


CONFIGS: list[dict[str, Any]] = [
    {},
    {"use_linear_projection": True, "attention_head_dim": (2, 4), "layers_per_block": 2},
    {"transformer_layers_per_block": 2, "upcast_attention": True},
    {"mid_block_type": "UNetMidBlock2D", "cross_attention_dim": 24},
    {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32, 32),
    },
]


def _blocks(unet: Any) -> dict[str, list[int]]:
    """Numbers of layers with transformers, by half and block."""
    return {
        half: [len(getattr(b, "attentions", ()) or ()) for b in getattr(unet, f"{half}_blocks")]
        for half in ("down", "up")
    }


def _random_scale(rng: random.Random, unet: Any) -> Any:
    """A number, or a dictionary of blocks; diffusers takes none without a middle."""
    if rng.random() < 0.5 or not unet.config.mid_block_type.endswith("CrossAttn"):
        return rng.choice([0, 0.3, 1.0, -0.5])
    scale: dict[str, Any] = {"mid": rng.choice([rng.random(), [0.5]])}
    for half, depths in _blocks(unet).items():
        numbers = {
            f"block_{i}": rng.choice([rng.random(), [rng.random() for _ in range(depth)], [0.5]])
            for i, depth in enumerate(depths)
            if depth and rng.random() < 0.8
        }
        scale[half] = numbers if rng.random() < 0.7 else rng.random()
    return {key: scale[key] for key in scale if rng.random() < 0.8}


def _random_masks(rng: random.Random, pictures: list[int], height: int, width: int) -> Any:
    masks = [
        (torch.rand(1, n, height, width, generator=seeded(n)) > 0.5).float()
        if rng.random() < 0.8
        else None
        for n in pictures
    ]
    return {} if rng.random() < 0.5 else {"ip_adapter_masks": masks}


@pytest.mark.parametrize("seed", range(10))
def test_a_unet_with_random_adapters_predicts_what_diffusers_does(seed: int) -> None:
    rng = random.Random(seed)
    fields = CONFIGS[seed % len(CONFIGS)]
    unet = tiny_unet(seed, **fields)
    oracle = oracle_network(unet)
    kinds = [KINDS[seed % len(KINDS)], *rng.choices(KINDS, k=rng.randint(0, 2))]
    adapters = [random_adapter(unet, kind, seed + i) for i, kind in enumerate(kinds)]
    ours, theirs = picture_pipeline(unet=unet), _parts()[1]
    theirs = ORACLES.StableDiffusionPipeline(
        **{**theirs.components, "unet": oracle}, requires_safety_checker=False
    )
    pictures = [rng.randint(1, 2) for _ in kinds]
    pictures = [pictures[0]] * len(kinds) if "face plus" in kinds else pictures
    scales = [_random_scale(rng, unet) for _ in kinds]
    for pipeline in (ours, theirs):
        load(pipeline, *adapters)
        pipeline.set_ip_adapter_scale(deepcopy(scales))
        set_face_tokens(pipeline.unet, 2, pictures[0], shortcut=seed % 2 == 0)
    assert ours.unet.state_dict().keys() == oracle.state_dict().keys()
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(tensor, ours.unet.state_dict()[name]), name
    height, width = rng.choice([(8, 8), (8, 16), (16, 8)])
    inputs = {
        "sample": torch.randn(2, 4, height, width, generator=seeded(seed)),
        "timestep": torch.tensor(rng.randint(0, 999)),
        "encoder_hidden_states": torch.randn(
            2, 7, fields.get("cross_attention_dim", WIDTH), generator=seeded(seed + 1)
        ),
        "added_cond_kwargs": {
            "image_embeds": [
                random_embeds(kind, 2, n, seed + i)
                for i, (kind, n) in enumerate(zip(kinds, pictures, strict=True))
            ]
        },
        "cross_attention_kwargs": _random_masks(rng, pictures, 8 * height, 8 * width),
        "return_dict": False,
    }
    with torch.no_grad():
        assert distance(ours.unet(**inputs)[0], oracle(**inputs)[0]) < 1e-5
        before = tiny_unet(seed, **fields)(
            **{k: v for k, v in inputs.items() if k not in ("added_cond_kwargs",)}
        )[0]
        acts = any(np.any(list(s.values()) if isinstance(s, dict) else s) for s in scales)
        assert not acts or not torch.equal(before, ours.unet(**inputs)[0])


def _picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


CALLS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "a picture": (("plain",), {"ip_adapter_image": _picture(0)}),
    "no guidance": (("plus",), {"ip_adapter_image": _picture(0), "guidance_scale": 1.0}),
    "two pictures for one adapter": (("plus",), {"ip_adapter_image": [[_picture(0), _picture(1)]]}),
    "an array": (("full",), {"ip_adapter_image": np.asarray(_picture(3))}),
    "pixel values": (("full",), {"ip_adapter_image": [torch.ones(1, 3, 24, 24)]}),
    "several adapters": (
        ("plain", "full", "plus"),
        {"ip_adapter_image": [_picture(0), _picture(1), [_picture(2), _picture(3)]]},
    ),
    "several prompts": (
        ("plain",),
        {
            "prompt": ["a boat", "a cat"],
            "num_images_per_prompt": 2,
            "ip_adapter_image": [_picture(0)],
        },
    ),
    "embeddings": (
        ("plain", "face"),
        {
            "ip_adapter_image_embeds": [random_embeds("plain", 2, 1), random_embeds("face", 2, 3)],
            "num_images_per_prompt": 2,
        },
    ),
    "embeddings without guidance": (
        ("plus",),
        {"ip_adapter_image_embeds": [random_embeds("plus", 1, 2)], "guidance_scale": 0.0},
    ),
    "faces with an axis more": (
        ("face",),
        {"ip_adapter_image_embeds": [random_embeds("face", 2, 2)[:, :, None]]},
    ),
    "masks": (
        ("plain", "plus"),
        {
            "ip_adapter_image": [[_picture(0), _picture(1)], _picture(2)],
            "cross_attention_kwargs": {
                "ip_adapter_masks": [
                    (torch.rand(1, 2, 32, 32, generator=seeded(1)) > 0.5).float(),
                    torch.ones(1, 1, 32, 32),
                ],
                "scale": 0.7,
            },
        },
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_with_pictures_gives_the_latents_of_diffusers(name: str) -> None:
    kinds, arguments = CALLS[name]
    pair = _pair()
    adapters = [random_adapter(pair[0].unet, kind, i) for i, kind in enumerate(kinds)]
    results = []
    for pipeline in pair:
        load(pipeline, *adapters)
        pipeline.set_ip_adapter_scale([0.6 + 0.1 * i for i in range(len(kinds))])
        results.append(
            pipeline(
                **{"prompt": "a boat", **arguments},
                num_inference_steps=2,
                generator=seeded(1),
                output_type="latent",
            ).images
        )
    assert distance(*results) < 1e-4


def test_a_scale_for_each_masked_picture_is_that_of_diffusers() -> None:
    pair = _pair()
    masks = IPAdapterMaskProcessor().preprocess([_picture(0), _picture(1)], height=16, width=16)
    for pipeline in pair:
        load(pipeline, random_adapter(pair[0].unet, "plus"))
        pipeline.set_ip_adapter_scale([[0.3, 0.9]])
    results = [
        pipeline(
            "a boat",
            ip_adapter_image=[[_picture(0), _picture(1)]],
            cross_attention_kwargs={"ip_adapter_masks": [masks.reshape(1, 2, 16, 16)]},
            num_inference_steps=2,
            generator=seeded(1),
            output_type="latent",
        ).images
        for pipeline in pair
    ]
    assert distance(*results) < 1e-4


def test_faces_with_pictures_and_a_lora_are_those_of_diffusers() -> None:
    pair = _pair()
    adapter = random_adapter(pair[0].unet, "face plus", loras=True)
    results = []
    for pipeline in pair:
        load(pipeline, adapter)
        set_face_tokens(pipeline.unet, 2, 1, shortcut=True)
        assert pipeline.get_active_adapters() == ["faceid_0"]
        results.append(
            pipeline(
                "a boat",
                ip_adapter_image_embeds=[random_embeds("face plus", 2, 1)],
                num_inference_steps=2,
                generator=seeded(1),
                output_type="latent",
            ).images
        )
    assert distance(*results) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_of_a_unet_of_diffusers_load_as_an_adapter(kind: str) -> None:
    ours, oracle = _pair()
    adapters = [random_adapter(ours.unet, kind, 1), random_adapter(ours.unet, "plain", 2)]
    load(oracle, *adapters)
    load(ours, oracle.unet.state_dict())
    assert ours.unet.state_dict().keys() == oracle.unet.state_dict().keys()
    for name, tensor in oracle.unet.state_dict().items():
        assert torch.equal(tensor, ours.unet.state_dict()[name])
    layers = zip(
        ours.unet.encoder_hid_proj.image_projection_layers,
        oracle.unet.encoder_hid_proj.image_projection_layers,
        strict=True,
    )
    assert all(type(a).__name__ == type(b).__name__ for a, b in layers)


@pytest.mark.parametrize("guided", [False, True])
def test_prepared_embeddings_are_those_of_diffusers(guided: bool) -> None:
    pair = _pair()
    results = []
    for pipeline in pair:
        load(pipeline, *(random_adapter(pair[0].unet, kind) for kind in ("plain", "plus")))
        results.append(
            pipeline.prepare_ip_adapter_image_embeds(
                [_picture(0), [_picture(1), _picture(2)]], None, "cpu", 2, guided
            )
        )
    for ours, oracle in zip(*results, strict=True):
        assert distance(ours, oracle) < 1e-5


@pytest.mark.parametrize("guided", [False, True])
def test_embeddings_for_edits_are_composed_as_in_diffusers(guided: bool) -> None:
    classes = (
        StableDiffusionInstructPix2PixPipeline,
        ORACLES.StableDiffusionInstructPix2PixPipeline,
    )
    given = [random_embeds("plain", 3 if guided else 1, 1)]
    results = []
    adapter = random_adapter(_parts()[0].unet)
    for cls, pipeline in zip(classes, _pair(), strict=True):
        load(pipeline, adapter)
        editor: Any = cls(**pipeline.components, requires_safety_checker=False)
        editor._guidance_scale, editor._image_guidance_scale = (5.0 if guided else 1.0), 1.5
        results.append(
            [
                *editor.prepare_ip_adapter_image_embeds(_picture(0), None, "cpu", 2, guided),
                *editor.prepare_ip_adapter_image_embeds(None, given, "cpu", 2, guided),
            ]
        )
    for ours, oracle in zip(*results, strict=True):
        assert distance(ours, oracle) < 1e-5


def test_a_callback_ends_the_pictures_as_in_diffusers() -> None:
    pair = _pair()
    callbacks = IPAdapterScaleCutoffCallback, OracleCutoff
    results = []
    for pipeline, callback in zip(pair, callbacks, strict=True):
        load(pipeline, random_adapter(pair[0].unet))
        results.append(
            pipeline(
                "a boat",
                ip_adapter_image=_picture(0),
                num_inference_steps=4,
                generator=seeded(1),
                output_type="latent",
                callback_on_step_end=callback(cutoff_step_ratio=0.5),
            ).images
        )
    assert distance(*results) < 1e-4


@pytest.mark.parametrize(
    "size", [(64, 64, 64), (48, 64, 48), (64, 48, 108), (100, 36, 77), (9, 64, 30)]
)
def test_masks_are_made_small_as_in_diffusers(size: tuple[int, int, int]) -> None:
    height, width, queries = size
    mask = torch.rand(1, height, width, generator=seeded(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ours = IPAdapterMaskProcessor.downsample(mask, 3, queries, 5)
        oracle = OracleMaskProcessor.downsample(mask, 3, queries, 5)
    assert distance(ours, oracle) < 1e-6


@pytest.mark.parametrize("size", [{}, {"height": 24, "width": 40}])
def test_masks_are_prepared_as_in_diffusers(size: dict[str, Any]) -> None:
    ours, oracle = IPAdapterMaskProcessor(), OracleMaskProcessor()
    for pictures in ([_picture(0), _picture(1)], _picture(2), torch.rand(2, 1, 24, 40)):
        expected = oracle.preprocess(pictures, **size)
        assert torch.equal(ours.preprocess(pictures, **size), expected)
    assert dict(ours.config).items() >= {"do_binarize": True, "do_normalize": False}.items()


WRONG: dict[str, dict[str, Any]] = {
    "lengths of names": {"args": ({}, ["a", "b", "c"], ["x", "y"])},
    "lengths of folders": {"args": ({}, ["a", "b"], ["x", "y", "z"])},
    "lengths of sources": {"args": ([{}, {}], "", ["x", "y", "z"])},
    "no keys": {"args": ({"weight": torch.zeros(1)}, "", "x")},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_get_the_messages_of_diffusers(name: str) -> None:
    messages = []
    for pipeline in _pair():
        with pytest.raises(ValueError) as caught:
            pipeline.load_ip_adapter(*WRONG[name]["args"])
        messages.append(str(caught.value))
    assert messages[0].startswith(messages[1])


def test_after_unloading_a_pipeline_has_the_components_that_diffusers_leaves() -> None:
    pair = _pair()
    for pipeline in pair:
        load(pipeline, random_adapter(pair[0].unet))
        pipeline.unload_ip_adapter()
    ours, oracle = pair
    assert ours.image_encoder is None and oracle.image_encoder is None
    assert ours.feature_extractor is not None and oracle.feature_extractor is not None
    assert ours.unet.state_dict().keys() == oracle.unet.state_dict().keys()
