"""Pipelines of the latent diffusion paper: what diffusers has no counterpart for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import DiffusionPipeline
from sfumato.conditioners.condition import Condition
from sfumato.errors import InputError, NumericalError, UnknownKeywordError
from sfumato.pipelines.latent_diffusion import LatentDiffusionPipeline
from sfumato.pipelines.ldm import LDMPipeline
from sfumato.pipelines.ldm_inpaint import LDMInpaintPipeline
from sfumato.pipelines.ldm_superresolution import LDMSuperResolutionPipeline
from sfumato.pipelines.pixels import DDPMPipeline
from sfumato.schedulers import DDIMScheduler
from tests.pipelines.tiny import seeded, tiny_unet, tiny_vae
from tests.pipelines.tiny_latent import SCHEDULE, parts, tiny_unet_2d, tiny_vq

SHORT: dict[str, Any] = {"num_inference_steps": 3, "output_type": "pt"}
#: To compare calls: in a picture, the last digit of a latent may choose another vector.
LATENT: dict[str, Any] = {**SHORT, "output_type": "latent"}


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


# Unconditional


def test_a_model_of_either_first_stage_draws_larger_than_it_was_trained() -> None:
    for first_stage in (tiny_vq(), tiny_vae(latent_channels=3)):
        pipe = LatentDiffusionPipeline(first_stage, tiny_unet_2d(), DDIMScheduler(**SCHEDULE))
        assert pipe(**SHORT).images.shape == (1, 3, 16, 16)
        assert pipe(batch_size=2, height=26, width=40, **SHORT).images.shape == (2, 3, 26, 40)


def test_each_picture_of_a_batch_is_that_of_its_seed_alone() -> None:
    pipe = LDMPipeline(**parts())
    together = pipe(seeds=[5, 9, 7], **LATENT).images
    alone = [pipe(seeds=seed, **LATENT).images for seed in (5, 9, 7)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    assert torch.equal(pipe(3, seeds=[5, 9, 7], **LATENT).images, together)


def test_given_latents_and_callbacks_take_part_in_the_flow() -> None:
    pipe, seen = LDMPipeline(**parts()), []

    def watch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, tuple(tensors["latents"].shape)))
        pipe._interrupt = step == 1
        return {"latents": tensors["latents"] * 0}

    noise = torch.randn(1, 3, 6, 8)
    images = pipe(latents=noise, height=12, width=16, callback_on_step_end=watch, **SHORT).images
    assert seen == [(0, (1, 3, 6, 8)), (1, (1, 3, 6, 8))]
    expected = pipe.vqvae.decode(torch.zeros(1, 3, 6, 8)).sample
    assert torch.allclose(images, (expected / 2 + 0.5).clamp(0, 1), atol=1e-6)


def test_a_first_stage_works_in_slices_and_parts() -> None:
    pipe = LDMPipeline(**parts())
    whole = pipe(2, generator=seeded(1), height=48, width=32, **SHORT).images
    pipe.enable_vae_slicing()
    pipe.enable_vae_tiling()
    assert pipe.vqvae.use_slicing and pipe.vqvae.use_tiling
    parted = pipe(2, generator=seeded(1), height=48, width=32, **SHORT).images
    assert torch.allclose(parted, whole, atol=1e-5)


def test_a_saved_pipeline_of_the_general_class_draws_the_same(tmp_path: Any) -> None:
    given = parts()
    pipe = LatentDiffusionPipeline(given["vqvae"], given["unet"], given["scheduler"])
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again) is LatentDiffusionPipeline
    assert again.conditioner is None
    images = [p(generator=seeded(2), **SHORT).images for p in (pipe, again)]
    assert torch.equal(*images)


# Conditions


class Numbers:
    """Conditions that are numbers, told in three ways at once."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def count(self, condition: Any) -> int:
        return len(condition)

    def encode(self, condition: Any, device: Any, dtype: Any) -> Condition:
        values = torch.tensor(condition, dtype=dtype)
        made = {
            "tokens": values[:, None, None].expand(-1, 2, 32),
            "channels": values[:, None, None, None].expand(-1, 2, 8, 10),
            "class_labels": values.long(),
        }
        return Condition(**{name: made[name] for name in self.names})

    def encode_negative(self, count: int, negative: Any, device: Any, dtype: Any) -> Condition:
        return self.encode([negative or 0] * count, device, dtype)


def conditioned(*names: str) -> LatentDiffusionPipeline:
    extra = 2 if "channels" in names else 0
    classes = 9 if "class_labels" in names else None
    if "tokens" in names:
        unet: Any = tiny_unet(in_channels=4 + extra, num_class_embeds=classes)
    else:
        unet = tiny_unet_2d(in_channels=4 + extra, out_channels=4, num_class_embeds=classes)
    scheduler = DDIMScheduler(**SCHEDULE)
    return LatentDiffusionPipeline(tiny_vae(), unet, scheduler, Numbers(*names))


@pytest.mark.parametrize(
    "names",
    [
        ("tokens",),
        ("channels",),
        ("class_labels",),
        ("tokens", "channels"),
        ("channels", "class_labels"),
        ("tokens", "channels", "class_labels"),
    ],
)
def test_each_picture_is_drawn_after_its_own_condition(names: tuple[str, ...]) -> None:
    pipe = conditioned(*names)
    given: dict[str, Any] = {"guidance_scale": 3.0, "negative_condition": 4, **SHORT}
    together = pipe([1, 2], batch_size=2, seeds=[1, 2, 3, 4], **given).images
    size = (16, 20) if "channels" in names else (16, 16)
    assert together.shape == (4, 3, *size)
    alone = [pipe([c], seeds=s, **given).images for c, s in ((1, 1), (1, 2), (2, 3), (2, 4))]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    other = pipe([2], seeds=1, **given).images
    assert not torch.allclose(other, together[:1], atol=1e-3)


def test_guidance_goes_from_the_negative_condition_beyond_the_other() -> None:
    pipe = conditioned("tokens", "class_labels")
    x = torch.randn(1, 4, 8, 8, generator=seeded(0))
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(50)
    t = scheduler.timesteps[0]

    def ask(number: int) -> torch.Tensor:
        told = Numbers("tokens", "class_labels").encode([number], None, torch.float32)
        return pipe.unet(x, t, told.tokens, class_labels=told.class_labels).sample

    expected = scheduler.step(ask(2) + 5 * (ask(3) - ask(2)), t, x).prev_sample
    seen = []

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"])
        pipe._interrupt = True
        return {}

    pipe(
        [3],
        negative_condition=2,
        guidance_scale=5.0,
        latents=x,
        output_type="latent",
        callback_on_step_end=stop,
    )
    assert torch.allclose(seen[0], expected, atol=1e-4)


# Super-resolution


def test_pictures_of_any_size_are_enlarged_by_the_factor_of_the_first_stage() -> None:
    pipe = LDMSuperResolutionPipeline(**parts(in_channels=6))
    assert pipe(torch.rand(2, 3, 9, 14), **SHORT).images.shape == (2, 3, 18, 28)
    both = pipe([picture(32, 64), picture(32, 64, 1)], seeds=[1, 2], **LATENT).images
    assert both.shape == (2, 3, 32, 64)
    alone = pipe(picture(32, 64, 1).convert("RGBA"), seeds=2, **LATENT).images
    assert torch.allclose(both[1:], alone, atol=1e-4)


def test_several_seeds_enlarge_one_picture_several_times() -> None:
    pipe = LDMSuperResolutionPipeline(**parts(in_channels=6))
    images = pipe(picture(32, 32), seeds=[1, 2, 3], **SHORT).images
    assert images.shape == (3, 3, 64, 64)
    assert not torch.allclose(images[0], images[1], atol=1e-3)


# Inpainting


def inpainting(**kinds: Any) -> LDMInpaintPipeline:
    return LDMInpaintPipeline(**{**parts(in_channels=7), **kinds})


def half_mask(height: int, width: int) -> Image.Image:
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return Image.fromarray(mask)


@pytest.mark.parametrize("kl", [False, True])
def test_pictures_stay_as_they_are_outside_of_the_mask(kl: bool) -> None:
    pipe = inpainting(**({"vqvae": tiny_vae(latent_channels=3)} if kl else {}))
    image = picture(20, 36)
    drawn = pipe(image, half_mask(20, 36), batch_size=2, seeds=[1, 2], **SHORT).images
    assert drawn.shape == (2, 3, 20, 36)
    known = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    assert torch.allclose(drawn[:, :, :, 18:], known[None, :, :, 18:], atol=1e-6)
    assert not torch.allclose(drawn[0, :, :, :18], known[:, :, :18], atol=1e-2)
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-3)


def test_the_network_sees_the_black_masked_picture_and_the_mask() -> None:
    """The arithmetic of the original inpainting script, step by step."""
    pipe = inpainting()
    image, mask = picture(16, 16), half_mask(16, 16)
    x = torch.randn(1, 3, 8, 8, generator=seeded(1))
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(3)
    rgb = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    m = (torch.from_numpy(np.asarray(mask).copy())[None, None] / 255 >= 0.5).float()
    rest = pipe.vqvae.encode((1 - m) * rgb * 2 - 1).latents
    told = torch.cat([rest, torch.nn.functional.interpolate(m * 2 - 1, size=(8, 8))], dim=1)
    expected = x
    with torch.no_grad():
        for t in scheduler.timesteps:
            noise = pipe.unet(torch.cat([expected, told], dim=1), t).sample
            expected = scheduler.step(noise, t, expected).prev_sample
    given = {**SHORT, "output_type": "latent"}
    assert torch.allclose(pipe(image, mask, latents=x, **given).images, expected, atol=1e-4)


def test_pictures_are_brought_to_the_size_asked_for() -> None:
    drawn = inpainting()(picture(30, 50), half_mask(10, 10), height=24, width=32, **SHORT).images
    assert drawn.shape == (1, 3, 24, 32)


# What is refused


def wrong_calls() -> dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], str]]:
    plain = LatentDiffusionPipeline(tiny_vq(), tiny_unet_2d(), DDIMScheduler(**SCHEDULE))
    ldm, larger = LDMPipeline(**parts()), LDMSuperResolutionPipeline(**parts(in_channels=6))
    fill = inpainting()
    return {
        "a condition": (plain, (3,), {}, "takes no condition"),
        "channels": (
            LatentDiffusionPipeline(tiny_vq(), tiny_unet_2d(in_channels=4), DDIMScheduler()),
            (),
            {},
            "expects 4",
        ),
        "batch": (ldm, (0,), {}, "batch_size"),
        "batch text": (ldm, ("2",), {"seeds": [1]}, "batch_size"),
        "seeds": (ldm, (2,), {"seeds": [1, 2, 3]}, "3 seeds for 2"),
        "height": (ldm, (), {"height": 15}, "`height` has to be divisible by 2"),
        "height of zero": (ldm, (), {"height": 0}, "`height`"),
        "steps": (ldm, (), {"num_inference_steps": 0}, "num_inference_steps"),
        "eta": (ldm, (), {"eta": 2}, "eta"),
        "latents": (ldm, (), {"latents": torch.zeros(1, 4, 8, 8)}, "`latents`"),
        "generators": (ldm, (3,), {"generator": [seeded(1)]}, "length 1"),
        "no image": (larger, (), {}, "`image` has to be of type"),
        "an array": (larger, (np.zeros((1, 3, 8, 8)),), {}, "`image` has to be of type"),
        "small": (larger, (picture(8, 8),), {}, "image.height"),
        "integers": (larger, (torch.zeros(1, 3, 8, 8, dtype=torch.uint8),), {}, "floating"),
        "grey": (larger, (torch.zeros(1, 1, 8, 8),), {}, "num_channels_image"),
        "NaN": (larger, (torch.full((1, 3, 8, 8), torch.nan),), {}, "NaN"),
        "no mask": (fill, (picture(16, 16),), {}, "`mask_image`"),
        "masks": (fill, (picture(16, 16), [half_mask(16, 16)] * 2), {}, "2 masks for 1"),
        "a UNet of another kind": (
            inpainting(unet=tiny_unet_2d()),
            (picture(16, 16), half_mask(16, 16)),
            {},
            "expects 3",
        ),
    }


@pytest.mark.parametrize("name", wrong_calls())
def test_a_wrong_call_is_refused(name: str) -> None:
    pipe, given, named, message = wrong_calls()[name]
    with pytest.raises(InputError, match=message):
        pipe(*given, **{**SHORT, **named})


def test_unknown_arguments_are_named() -> None:
    with pytest.raises(UnknownKeywordError, match="batchsize"):
        LDMPipeline(**parts())(batchsize=2)


def test_a_first_stage_that_overflows_says_so() -> None:
    pipe = LDMPipeline(**parts())
    with torch.no_grad():
        pipe.vqvae.decoder.conv_out.bias += torch.inf
    with pytest.raises(NumericalError, match="first stage"):
        pipe(**SHORT)


def test_models_of_pixels_draw_other_sizes() -> None:
    pipe = DDPMPipeline(tiny_unet_2d(), DDIMScheduler(**SCHEDULE))
    assert pipe(2, height=7, width=13, **SHORT).images.shape == (2, 3, 7, 13)
