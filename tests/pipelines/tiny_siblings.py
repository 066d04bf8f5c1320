"""A tiny random pipeline of every kind, and a call of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image

import sfumato
from tests.parity.test_k_unet import UPSCALER
from tests.pipelines import tiny, tiny_conditioned, tiny_latent
from tests.pipelines.tiny import seeded, tiny_parts, tiny_scheduler, tiny_unet

Call = tuple[Any, dict[str, Any]]

#: Kinds that are told what to draw otherwise than by a text.
TEXTLESS = ("ldm", "super-resolution", "ldm inpainting", "class", "semantic", "layout")


def picture(height: int = 16, width: int = 16, seed: int = 0) -> Image.Image:
    """Noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def half() -> Image.Image:
    """A mask of the left half."""
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    return mask


def _parts(**unet: Any) -> dict[str, Any]:
    return {**tiny_parts(1), **({"unet": tiny_unet(7, **unet)} if unet else {})}


def _unsafe(**unet: Any) -> dict[str, Any]:
    left_out = ("safety_checker", "feature_extractor", "requires_safety_checker")
    return {name: part for name, part in _parts(**unet).items() if name not in left_out}


def _text() -> Call:
    return sfumato.StableDiffusionPipeline(**_parts()), {}


def _from_picture() -> Call:
    pipe = sfumato.StableDiffusionImg2ImgPipeline(**_parts())
    return pipe, {"image": picture(), "strength": 1.0}


def _inpainting(channels: int) -> Call:
    pipe = sfumato.StableDiffusionInpaintPipeline(**_parts(in_channels=channels))
    return pipe, {"image": picture(), "mask_image": half(), "height": 16, "width": 16}


def _edit() -> Call:
    return sfumato.StableDiffusionInstructPix2PixPipeline(**_parts(in_channels=8)), {
        "image": picture()
    }


def _depth() -> Call:
    parts = {**_unsafe(in_channels=5), "depth_estimator": None, "feature_extractor": None}
    depth = torch.rand(1, 16, 16, generator=seeded(3))
    return sfumato.StableDiffusionDepth2ImgPipeline(**parts), {
        "image": picture(),
        "depth_map": depth,
        "strength": 1.0,
    }


def _upscale() -> Call:
    parts = _unsafe(in_channels=7, num_class_embeds=1000)
    parts["vae"] = tiny.tiny_vae(2, scaling_factor=0.08333)
    pipe = sfumato.StableDiffusionUpscalePipeline(
        **parts, low_res_scheduler=tiny_scheduler("DDPMScheduler")
    )
    return pipe, {"image": picture(8, 8)}


def _latent_upscale() -> Call:
    parts = _parts()
    pipe = sfumato.StableDiffusionLatentUpscalePipeline(
        **{name: parts[name] for name in ("vae", "text_encoder", "tokenizer")},
        unet=tiny_unet(7, **{**UPSCALER, "layers_per_block": 1, "sample_size": 16}),
        scheduler=tiny_scheduler("EulerDiscreteScheduler", prediction_type="sample"),
    )
    return pipe, {"image": torch.randn(1, 4, 8, 8, generator=seeded(4))}


def _controlled(kind: str) -> Call:
    cls = getattr(sfumato, f"StableDiffusionControlNet{kind}Pipeline")
    pipe = cls(**_parts(), controlnet=tiny.tiny_controlnet())
    if not kind:
        return pipe, {"image": picture()}
    call: dict[str, Any] = {"image": picture(), "control_image": picture(seed=2), "strength": 1.0}
    if kind == "Inpaint":
        call |= {"mask_image": half(), "height": 16, "width": 16}
    return pipe, call


def _panorama() -> Call:
    return sfumato.StableDiffusionPanoramaPipeline(**_parts()), {"height": 16, "width": 32}


def _adapted() -> Call:
    unet = tiny_unet(
        7,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapter = sfumato.T2IAdapter(channels=(32, 64), num_res_blocks=1, downscale_factor=2)
    pipe = sfumato.StableDiffusionAdapterPipeline(
        **{**_parts(), "unet": unet}, adapter=adapter.eval()
    )
    return pipe, {"image": picture()}


def _ldm() -> Call:
    return sfumato.LDMPipeline(**tiny_latent.parts()), {}


def _super_resolution() -> Call:
    return sfumato.LDMSuperResolutionPipeline(**tiny_latent.parts(in_channels=6)), {
        "image": torch.rand(1, 3, 8, 8, generator=seeded(5))
    }


def _ldm_inpainting() -> Call:
    return sfumato.LDMInpaintPipeline(**tiny_latent.parts(in_channels=7)), {
        "image": picture(),
        "mask_image": half(),
    }


def _conditioned(kind: str) -> Call:
    conditions: dict[str, Any] = {
        "class": 3,
        "semantic": torch.randint(0, 5, (16, 16), generator=seeded(6)),
        "layout": sfumato.Layout([sfumato.Box(label=3, x=0.1, y=0.1, width=0.5, height=0.5)]),
    }
    return tiny_conditioned.pipeline(kind), {"condition": conditions[kind]}


_KINDS: dict[str, Callable[[], Call]] = {
    "text": _text,
    "image": _from_picture,
    "inpainting": lambda: _inpainting(4),
    "inpainting of 9 channels": lambda: _inpainting(9),
    "edit": _edit,
    "depth": _depth,
    "upscale": _upscale,
    "latent upscale": _latent_upscale,
    "controlnet": lambda: _controlled(""),
    "controlnet image": lambda: _controlled("Img2Img"),
    "controlnet inpainting": lambda: _controlled("Inpaint"),
    "panorama": _panorama,
    "adapter": _adapted,
    "ldm": _ldm,
    "super-resolution": _super_resolution,
    "ldm inpainting": _ldm_inpainting,
    **{kind: lambda kind=kind: _conditioned(kind) for kind in ("class", "semantic", "layout")},
}
KINDS = tuple(_KINDS)


@cache
def sibling(kind: str) -> Call:
    """A pipeline of that kind, and what a call of it takes besides steps; not to be changed.

    It draws in three steps of DDIM where it can, which remembers nothing from step to step.
    """
    pipe, call = _KINDS[kind]()
    if kind != "latent upscale":
        pipe.scheduler = sfumato.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    words = {} if kind in TEXTLESS else {"prompt": "a boat"}
    return pipe, {**words, **call, "num_inference_steps": 3, "output_type": "latent"}
