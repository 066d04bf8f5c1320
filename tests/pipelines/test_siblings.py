"""Pipelines beyond diffusers: sharing, folders, seeds, tiling, two passes, room to grow."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.diffusion.guidance_parts import IntervalGuidance
from sfumato.errors import ImageError, InputError
from sfumato.models.processors import AttnProcessor2_0, SlicedAttnProcessor
from sfumato.pipelines import regions
from sfumato.pipelines.base import DiffusionPipeline
from sfumato.pipelines.controlnet import StableDiffusionControlNetPipeline
from sfumato.pipelines.depth2img import StableDiffusionDepth2ImgPipeline
from sfumato.pipelines.hires import UPSCALERS, draw_large
from sfumato.pipelines.img2img import StableDiffusionImg2ImgPipeline
from sfumato.pipelines.inpaint import StableDiffusionInpaintPipeline
from sfumato.pipelines.panorama import StableDiffusionPanoramaPipeline
from sfumato.pipelines.upscale import StableDiffusionUpscalePipeline
from tests.pipelines.tiny import (
    seeded,
    tiny_controlnet,
    tiny_parts,
    tiny_pipeline,
    tiny_scheduler,
    tiny_unet,
)

SHARING = (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPanoramaPipeline,
    StableDiffusionDepth2ImgPipeline,
)


def _image(height: int = 16, width: int = 16, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).random((height, width, 3)) * 255
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("cls", SHARING)
def test_a_pipeline_made_from_another_shares_its_weights(cls: Any) -> None:
    pipe = tiny_pipeline()
    other = cls.from_pipe(pipe)
    assert other.unet is pipe.unet
    assert other.vae is pipe.vae
    assert other.text_encoder is pipe.text_encoder
    assert other.scheduler is pipe.scheduler


def test_attention_is_switched_in_every_one_of_several_controlnets() -> None:
    nets = [tiny_controlnet(seed) for seed in range(2)]
    pipe = StableDiffusionControlNetPipeline.from_pipe(tiny_pipeline(), controlnet=nets)
    call: dict[str, Any] = {"image": [_image(16, 16, 1), _image(16, 16, 2)], "output_type": "np"}

    def drawn() -> torch.Tensor:
        images = pipe("a boat", num_inference_steps=2, generator=seeded(1), **call).images
        return torch.from_numpy(images)

    def processors() -> set[type]:
        return {type(p) for net in nets for p in net.attn_processors.values()}

    plain = drawn()
    pipe.enable_attention_slicing("max")
    assert processors() == {SlicedAttnProcessor}
    torch.testing.assert_close(drawn(), plain)
    pipe.disable_attention_slicing()
    assert processors() == {AttnProcessor2_0}
    pipe.enable_attention_slicing(1)
    pipe.disable_xformers_memory_efficient_attention()
    assert processors() == {AttnProcessor2_0}
    assert torch.equal(drawn(), plain)


def test_a_controlnet_is_added_while_sharing() -> None:
    pipe = tiny_pipeline()
    net = tiny_controlnet()
    other = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net)
    assert other.controlnet is net
    assert other.unet is pipe.unet


def test_folders_of_these_pipelines_are_saved_and_loaded(tmp_path: Path) -> None:
    parts = tiny_parts()
    small = {k: v for k, v in parts.items() if k != "requires_safety_checker"}
    pipes: list[Any] = [
        StableDiffusionInpaintPipeline(**{**parts, "unet": tiny_unet(in_channels=9)}),
        StableDiffusionControlNetPipeline(**parts, controlnet=tiny_controlnet()),
    ]
    with pytest.warns(FutureWarning, match="scaling_factor"):
        pipes.append(StableDiffusionUpscalePipeline(**small, low_res_scheduler=parts["scheduler"]))
    for index, pipe in enumerate(pipes):
        pipe.save_pretrained(tmp_path / str(index))
        again = DiffusionPipeline.from_pretrained(tmp_path / str(index))
        assert type(again) is type(pipe)
        assert again.config.keys() - {"_name_or_path"} == pipe.config.keys()
        assert all(
            torch.equal(v, again.unet.state_dict()[k]) for k, v in pipe.unet.state_dict().items()
        )


def test_a_strength_of_zero_gives_the_picture_back_as_the_autoencoder_sees_it() -> None:
    pipe = StableDiffusionImg2ImgPipeline.from_pipe(
        tiny_pipeline(), scheduler=tiny_scheduler("DDIMScheduler")
    )
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))
    result = pipe("a boat", image=latents, strength=0.0, output_type="latent").images
    assert torch.equal(result, latents)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_syntax": "a1111"},
        {"guidance": IntervalGuidance(0.0, 0.5)},
        {"callback_on_step_end": lambda *given: None},
    ],
)
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMAdaptiveScheduler"])
def test_a_picture_of_which_nothing_is_drawn_anew_takes_every_option(
    name: str, options: dict[str, Any]
) -> None:
    pipe: Any = StableDiffusionImg2ImgPipeline.from_pipe(
        tiny_pipeline(scheduler=tiny_scheduler(name))
    )
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))
    call = {"num_inference_steps": 4, "output_type": "latent", **options}
    for strength in (0.0, 0.2):  # of four steps less than one
        drawn = pipe("a [boat:cat:0.5]", image=latents, strength=strength, **call).images
        assert torch.equal(drawn, latents)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_pictures_of_every_mode_are_taken(mode: str) -> None:
    pipe = StableDiffusionImg2ImgPipeline.from_pipe(tiny_pipeline())
    image = _image().convert(mode)
    call: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    drawn = [
        pipe("a boat", image=form, generator=seeded(1), **call).images
        for form in (image, image.convert("RGB"))
    ]
    assert torch.equal(*drawn)


def test_what_a_mask_leaves_out_is_kept() -> None:
    pipe = StableDiffusionInpaintPipeline.from_pipe(tiny_pipeline())
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    drawn = pipe(
        "a boat",
        image=latents,
        mask_image=mask,
        masked_image_latents=latents,
        height=16,
        width=16,
        num_inference_steps=3,
        generator=seeded(1),
        output_type="latent",
    ).images
    assert torch.equal(drawn[..., 4:], latents[..., 4:])
    assert not torch.allclose(drawn[..., :4], latents[..., :4], atol=0.1)


@pytest.mark.parametrize("rng", ["cpu", "nvidia"])
def test_seeds_give_each_changed_picture_as_it_is_alone(rng: str) -> None:
    pipe = StableDiffusionImg2ImgPipeline.from_pipe(tiny_pipeline())
    call: dict[str, Any] = {
        "image": _image(),
        "num_inference_steps": 3,
        "output_type": "latent",
        "rng": rng,
    }
    together = pipe("a boat", seeds=[4, 5], **call).images
    for seed, row in zip((4, 5), together, strict=True):
        assert torch.allclose(pipe("a boat", seeds=seed, **call).images[0], row, atol=1e-4)


@pytest.mark.parametrize("tiling", [True, "x", "y"])
def test_a_tiling_picture_moves_with_its_noise(tiling: bool | str) -> None:
    """Where edges join there is no first column, so that a shifted start gives a shifted end."""
    pipe = tiny_pipeline()
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))
    axes = {True: (2, 3), "x": (3,), "y": (2,)}[tiling]
    shift = (2,) * len(axes)

    def drawn(start: torch.Tensor, **more: Any) -> torch.Tensor:
        call: dict[str, Any] = {"num_inference_steps": 3, "output_type": "pt"}
        return pipe("a boat", latents=start, **call, **more).images

    plain = drawn(latents, tiling=tiling)
    moved = drawn(latents.roll(shift, axes), tiling=tiling)
    pixels = plain.roll(tuple(4 for _ in axes), axes)
    assert torch.allclose(moved, pixels, atol=1e-4)
    seamed = drawn(latents.roll(shift, axes))
    assert not torch.allclose(seamed, drawn(latents).roll(tuple(4 for _ in axes), axes), atol=1e-3)


def test_tiling_leaves_nothing_behind_and_other_threads_alone() -> None:
    pipe = tiny_pipeline()
    call: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    alone = pipe("a boat", seeds=1, **call).images
    meanwhile: list[torch.Tensor] = []

    def beside(*_: Any) -> None:
        if not meanwhile:
            thread = threading.Thread(
                target=lambda: meanwhile.append(pipe("a boat", seeds=1, **call).images)
            )
            thread.start()
            thread.join(timeout=60)

    tiled = pipe("a boat", seeds=1, tiling=True, callback_on_step_end=beside, **call).images
    assert not torch.allclose(tiled, alone, atol=1e-3)
    assert torch.equal(meanwhile[0], alone)
    assert torch.equal(pipe("a boat", seeds=1, **call).images, alone)
    with pytest.raises(InputError, match="tiling"):
        pipe("a boat", tiling="both", **call)


@pytest.mark.parametrize("upscaler", UPSCALERS)
def test_two_passes_draw_a_larger_picture(upscaler: str) -> None:
    pipe = tiny_pipeline()
    call: dict[str, Any] = {"num_inference_steps": 3, "guidance_rescale": 0.3}
    drawn = draw_large(pipe, "a boat", scale=1.5, upscaler=upscaler, seeds=[1, 2], **call).images
    assert [image.size for image in drawn] == [(24, 24)] * 2
    alone = draw_large(pipe, "a boat", scale=1.5, upscaler=upscaler, seeds=2, **call).images[0]
    assert np.abs(np.asarray(alone, float) - np.asarray(drawn[1], float)).max() <= 1


@pytest.mark.parametrize(
    "wrong", [{"scale": 0.5}, {"upscaler": "magic"}, {"strength": 2.0}, {"scale": float("nan")}]
)
def test_two_passes_refuse_what_is_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        draw_large(tiny_pipeline(), "a boat", num_inference_steps=1, **wrong)


def test_a_picture_is_extended_with_its_edges_and_a_mask_of_what_is_new() -> None:
    image = _image(16, 24)
    larger, mask = regions.extended(image, (8, 0, 16, 4))
    assert larger.size == mask.size == (48, 20)
    assert larger.crop((8, 0, 32, 16)).tobytes() == image.tobytes()
    assert larger.getpixel((0, 3)) == image.getpixel((0, 3))
    marked = np.asarray(mask) == 255
    assert marked.sum() == 48 * 20 - 24 * 16
    assert not marked[:16, 8:32].any()
    with pytest.raises(ImageError):
        regions.extended(image, (0, 0, 0, 0))


def test_an_empty_mask_has_no_region() -> None:
    with pytest.raises(ImageError, match="black everywhere"):
        regions.region_of_mask(Image.new("L", (8, 8)), 8, 8)


def test_a_panorama_of_several_pictures_gives_each_as_it_is_alone() -> None:
    pipe = StableDiffusionPanoramaPipeline.from_pipe(tiny_pipeline())
    call: dict[str, Any] = {"height": 16, "width": 160, "num_inference_steps": 2}
    call |= {"output_type": "latent", "view_batch_size": 3}
    prompts = ["a boat", "a cat"]
    together = pipe(prompts, generator=seeded(1, 2), **call).images
    for index, prompt in enumerate(prompts):
        alone = pipe(prompt, generator=seeded(index + 1), **call).images[0]
        assert torch.allclose(alone, together[index], atol=1e-4)


def test_prompts_that_change_go_on_to_change_in_a_second_pass() -> None:
    pipe = tiny_pipeline()
    call: dict[str, Any] = {
        "height": 16,
        "width": 16,
        "num_inference_steps": 4,
        "strength": 1.0,
        "seeds": 1,
        "output_type": "latent",
        "prompt_syntax": "a1111",
    }
    drawn = {
        text: draw_large(pipe, text, **call).images
        for text in ("a boat", "a [boat:cat:1.5]", "a [boat:cat:6]", "a [boat:cat:0.99]")
    }
    assert torch.allclose(drawn["a [boat:cat:1.5]"], drawn["a [boat:cat:6]"], atol=1e-4)
    assert not torch.allclose(drawn["a boat"], drawn["a [boat:cat:1.5]"], atol=1e-3)
    assert not torch.allclose(drawn["a [boat:cat:0.99]"], drawn["a [boat:cat:1.5]"], atol=1e-3)
