"""Large pictures in two passes: a small one for the composition, then image to image for detail."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sfumato.config import check_choice
from sfumato.errors import InputError
from sfumato.pipelines import checks
from sfumato.pipelines.image_processor import RESAMPLING
from sfumato.pipelines.img2img import StableDiffusionImg2ImgPipeline
from sfumato.pipelines.request import Request

#: Ways to enlarge: latents by interpolation, or the finished picture by a filter.
LATENT_UPSCALERS = {
    "latent": "bilinear",
    "latent-nearest": "nearest-exact",
    "latent-bicubic": "bicubic",
}
PICTURE_UPSCALERS = ("lanczos", "bicubic", "bilinear", "nearest")
UPSCALERS = (*LATENT_UPSCALERS, *PICTURE_UPSCALERS)

#: Arguments of text to image that image to image has no use for.
_FIRST_PASS = ("height", "width", "latents", "timesteps", "sigmas")


def draw_large(
    pipeline: Any,
    prompt: str | list[str],
    *,
    scale: float = 2.0,
    upscaler: str = "latent",
    strength: float = 0.7,
    hires_steps: int | None = None,
    **call: Any,
) -> Any:
    """Draw a picture at the size the model knows, enlarge it, and draw it anew in part.

    Drawn in one pass, a large picture shows things twice, since the model has seen none so large.

    Args:
        pipeline: a text-to-image pipeline; its components are shared by the second pass.
        prompt: what to draw.
        scale: how much higher and wider the result is, 1..8; sides are cut to multiples of 8.
        upscaler: one of `UPSCALERS`. Latents need a ``strength`` of about 0.5 or more to become
            sharp, pictures do with less.
        strength: of the second pass; see `StableDiffusionImg2ImgPipeline.__call__`.
        hires_steps: steps of the second pass before ``strength``; by default as many.
        call: further arguments of ``pipeline``; ``height`` and ``width`` are of the first pass.
            With ``seeds`` both passes begin from the same noise, a generator goes on drawing.
            In prompts that change, steps of the second pass are counted on, as in A1111: ``1.5``
            is its half, and with 20 steps ``[a:b:25]`` its fifth step.

    Returns:
        What the pipeline returns.

    Raises:
        InputError: an argument is out of range.
    """
    checks.finite_number("scale", scale, 1, 8)
    check_choice("upscaler", upscaler, UPSCALERS)
    checks.check_strength(strength)
    latent = upscaler in LATENT_UPSCALERS
    first = pipeline(prompt, **{**call, "output_type": "latent" if latent else "pil"}).images
    second = StableDiffusionImg2ImgPipeline.from_pipe(pipeline)
    second._progress_bar_config = pipeline._progress_bar_config
    image = (
        enlarged_latents(first, scale, LATENT_UPSCALERS[upscaler], pipeline.vae_scale_factor)
        if latent
        else enlarged_pictures(first, scale, upscaler)
    )
    again = {name: value for name, value in call.items() if name not in _FIRST_PASS}
    again["num_images_per_prompt"] = 1
    again["earlier_steps"] = call.get("num_inference_steps", Request.num_inference_steps)
    if hires_steps is not None:
        again["num_inference_steps"] = hires_steps
    images = int(call.get("num_images_per_prompt") or 1)
    return second(_each(prompt, images, len(first)), image=image, strength=strength, **again)


def _each(prompt: str | list[str], images: int, count: int) -> str | list[str]:
    """The prompts of the second pass, one for each picture of the first."""
    if isinstance(prompt, str):
        return prompt if count == 1 else [prompt] * count
    if len(prompt) * images != count:
        raise InputError("Give as many seeds as there are prompts, or one prompt.")
    return [text for text in prompt for _ in range(images)]


def enlarged_latents(latents: Tensor, scale: float, mode: str, factor: int) -> Tensor:
    """Latents ``scale`` times as high and wide, so that pictures are multiples of 8 pixels."""
    grid = max(8 // factor, 1)
    size = [max(int(side * scale) // grid, 1) * grid for side in latents.shape[2:]]
    return nn.functional.interpolate(latents, size=size, mode=mode)


def enlarged_pictures(pictures: list[Any], scale: float, upscaler: str) -> list[Any]:
    """PIL pictures ``scale`` times as high and wide, cut to multiples of 8 pixels."""
    size = tuple(int(side * scale) // 8 * 8 for side in pictures[0].size)
    return [picture.resize(size, resample=RESAMPLING[upscaler]) for picture in pictures]
