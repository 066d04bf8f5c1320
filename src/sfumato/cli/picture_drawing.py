"""Drawing from a picture, into one, under the control of one, or in two passes: which pipeline."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from sfumato import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from sfumato.checkpoints.files import shown
from sfumato.checkpoints.metadata import Recipe
from sfumato.cli.picture_options import INPAINT_STRENGTH, STRENGTH, read_edges
from sfumato.errors import ImageError, InputError
from sfumato.pipelines import regions
from sfumato.pipelines.hires import draw_large


def draw_recipe(pipe: Any, recipe: Recipe, **call: Any) -> Any:
    """Call the pipeline that a recipe asks for, which shares the components of ``pipe``.

    Args:
        pipe: for text to image.
        recipe: what to draw.
        call: arguments that all pipelines take.
    """
    call["tiling"] = {"True": True, None: None}.get(recipe.tiling, recipe.tiling)
    size = {"height": recipe.height, "width": recipe.width}
    if recipe.init_image is not None:
        return _from_picture(pipe, recipe, call)
    if recipe.hires_scale is not None:
        first = {name: _first_side(side, recipe.hires_scale) for name, side in size.items()}
        return draw_large(
            pipe,
            recipe.prompt,
            scale=recipe.hires_scale,
            upscaler=recipe.hires_upscaler or "latent",
            strength=STRENGTH if recipe.strength is None else recipe.strength,
            hires_steps=recipe.hires_steps,
            **first,
            **call,
        )
    if recipe.controlnet is not None:
        other = _shared(pipe, StableDiffusionControlNetPipeline, recipe)
        control = open_picture(recipe.control_image)
        return other(recipe.prompt, control, **size, **_strength_of_control(recipe), **call)
    return pipe(recipe.prompt, **size, **call)


def _first_side(side: int | None, scale: float) -> int | None:
    """A side of the first pass, for a side of the result."""
    return None if side is None else max(8, round(side / scale / 8) * 8)


def _from_picture(pipe: Any, recipe: Recipe, call: dict[str, Any]) -> Any:
    image, mask = _picture_and_mask(recipe)
    kinds: tuple[Any, Any] = (StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline)
    strength = STRENGTH if mask is None else INPAINT_STRENGTH
    more: dict[str, Any] = {"image": image}
    if recipe.controlnet is not None:
        kinds = (StableDiffusionControlNetImg2ImgPipeline, StableDiffusionControlNetInpaintPipeline)
        control = open_picture(recipe.control_image)
        more |= {"control_image": control.resize(image.size), **_strength_of_control(recipe)}
    if mask is not None:
        more |= {"mask_image": mask, "height": image.height, "width": image.width}
    more["strength"] = strength if recipe.strength is None else recipe.strength
    result = _shared(pipe, kinds[mask is not None], recipe)(recipe.prompt, **more, **call)
    if mask is not None:  # what is kept is kept to the pixel, not as the autoencoder sees it
        result.images = [regions.overlay(mask, image, drawn) for drawn in result.images]
    return result


def _picture_and_mask(recipe: Recipe) -> tuple[Image.Image, Image.Image | None]:
    """The picture to begin from at the size to draw, and its mask if there is any."""
    image = open_picture(recipe.init_image)
    if recipe.outpaint is not None:
        own = (image.width // 8 * 8, image.height // 8 * 8)
        return regions.extended(ImageOps.fit(image, own), read_edges(recipe.outpaint))
    size = (recipe.width or image.width // 8 * 8, recipe.height or image.height // 8 * 8)
    if min(size) < 8:
        raise ImageError(f"{shown(Path(recipe.init_image or ''))} is smaller than 8 pixels.")
    mask = None if recipe.mask is None else open_picture(recipe.mask, "L")
    fitted = None if mask is None else ImageOps.fit(mask, size, Image.Resampling.NEAREST)
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS), fitted


def _shared(pipe: Any, cls: Any, recipe: Recipe) -> Any:
    """A pipeline of another class with the components, and the progress bar, of this one."""
    more = {}
    if recipe.controlnet is not None:
        more["controlnet"] = _controlnet(recipe.controlnet, pipe.unet)
    other = cls.from_pipe(pipe, **more)
    other._progress_bar_config = pipe._progress_bar_config
    return other


@lru_cache(maxsize=1)
def _controlnet(path: str, unet: Any) -> ControlNetModel:
    load = ControlNetModel.from_pretrained
    if Path(path).is_file():
        load = ControlNetModel.from_single_file
    net = load(path, torch_dtype=unet.dtype)
    return net.to(unet.device).eval()


def _strength_of_control(recipe: Recipe) -> dict[str, float]:
    strength = recipe.control_strength
    return {"controlnet_conditioning_scale": 1.0 if strength is None else float(strength)}


def open_picture(path: str | None, mode: str = "RGB") -> Image.Image:
    """A picture from a file, turned upright as its camera noted.

    Raises:
        ImageError: it is no picture, or a damaged one.
    """
    if path is None:
        raise InputError("A ControlNet needs a picture.", hint="Give it with --control-image.")
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            return (upright or picture).convert(mode)
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise ImageError(f"{shown(Path(path))} is no picture that can be read: {error}") from None
