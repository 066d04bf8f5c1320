"""Drawing only where a mask is white: for UNets that see the mask, and for those that do not.

An inpainting UNet has ``2 * latent channels + 1`` inputs: besides the latents the mask, and the
latents of the picture with the masked part blanked. Any other UNet draws everything, and after
each step what the mask does not cover is put back, noised to the level of that step
(arXiv:2201.09865 without its resampling).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sfumato.diffusion.denoise import Step
from sfumato.diffusion.noise import Generators, randn_tensor
from sfumato.errors import InputError
from sfumato.pipelines import checks, stages
from sfumato.pipelines.flow import ChannelPiece, Drawing, check_channels, fit_rows
from sfumato.pipelines.regions import Box
from sfumato.pipelines.start import are_latents, as_rgb, rows_to_encode


class Masked(ChannelPiece):
    """Latents that begin as a picture or as noise, and change only where a mask is white.

    Draws, in this order: the encoded picture if it is needed, the noise, the encoded rest of the
    picture.

    Args:
        image: pictures, or latents of them.
        mask_image: masks; white is drawn anew.
        masked_image_latents: the picture with the masked part blanked, encoded already.
        height, width: of the result in pixels.
        region: draw only this part of the picture; see `region_to_draw`.
        strength: 1 begins with noise alone.
        latents: the noise itself, in place of a random draw.
    """

    needs_steps = "masks"

    def __init__(
        self,
        image: Any,
        mask_image: Any,
        masked_image_latents: Tensor | None,
        height: int,
        width: int,
        region: Box | None,
        strength: float,
        latents: Tensor | None = None,
    ) -> None:
        self.image, self.mask_image = as_rgb(image), mask_image
        self.masked_image_latents = masked_image_latents
        self.height, self.width = height, width
        self.region, self.strength, self.latents = region, strength, latents

    def prepare(self, drawing: Drawing) -> None:
        pipeline = drawing.pipeline
        if drawing.steps < 1:
            raise InputError(
                "After adjusting the num_inference_steps by strength parameter:"
                f" {self.strength}, the number of pipelinesteps is {drawing.steps} which is < 1"
                " and not appropriate for this pipeline.",
                hint="Take more steps, or a larger `strength`.",
            )
        image = self._fitted(pipeline.image_processor, self.image).float()
        mask = self._fitted(pipeline.mask_processor, self.mask_image)
        channels, inputs = pipeline.vae.config.latent_channels, pipeline.unet.config.in_channels
        self.plain = inputs == channels
        rows = drawing.pictures
        factor = pipeline.vae_scale_factor
        drawing.x, self.noise, self.known = start_of_masked(
            pipeline,
            drawing.scheduler,
            (rows, channels, self.height // factor, self.width // factor),
            drawing.dtype,
            drawing.device,
            drawing.request.generator,
            latents=self.latents,
            image=image,
            timestep=drawing.timesteps[:1].repeat(rows),
            pure=self.strength == 1,
            keep=self.plain,
        )
        rest = self.masked_image_latents
        mask, rest = mask_latents(
            pipeline,
            mask,
            image * (mask < 0.5) if rest is None else rest,
            rows,
            self.height,
            self.width,
            drawing.dtype,
            drawing.device,
            drawing.request.generator,
            drawing.guided,
        )
        if not self.plain:
            check_unet(pipeline.unet, channels, mask, rest)
            self.channels = ("mask", "masked_image_latents")
        drawing.tensors |= {"mask": mask, "masked_image_latents": rest}

    def _fitted(self, processor: Any, picture: Any) -> Tensor:
        return processor.preprocess(
            picture,
            height=self.height,
            width=self.width,
            crops_coords=self.region,
            resize_mode="default" if self.region is None else "fill",
        )

    def after_step(self, drawing: Drawing, step: Step) -> None:
        if not self.plain:
            return
        assert self.known is not None
        known, done = self.known, step.index + 1
        if done < len(drawing.timesteps):
            following = drawing.timesteps[done].reshape(1)
            known = drawing.scheduler.add_noise(known, self.noise, following)
        mask = fit_rows(drawing.tensor("mask"), len(step.x))
        step.x = (1 - mask) * known + mask * step.x

    def finish(self, drawing: Drawing, images: Any) -> Any:
        if self.region is None:
            return images
        overlay = drawing.pipeline.image_processor.apply_overlay
        return [overlay(self.mask_image, self.image, drawn, self.region) for drawn in images]


def region_to_draw(
    pipeline: Any, mask_image: Any, height: int, width: int, padding: int | None
) -> Box | None:
    """The part of a picture around its mask, in the shape of what is drawn; None for all of it."""
    if padding is None:
        return None
    return pipeline.mask_processor.get_crop_region(mask_image, width, height, pad=padding)


def start_of_masked(
    pipeline: Any,
    scheduler: Any,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device | str,
    generator: Generators,
    *,
    latents: Tensor | None,
    image: Tensor | None,
    timestep: Tensor | None,
    pure: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What to begin with: latents, the noise in them, and the latents of the picture.

    Args:
        pipeline: has the autoencoder.
        scheduler: adds noise.
        shape: of the latents.
        dtype, device: of the results.
        generator: for encoding and for the noise.
        latents: the noise, in place of a draw.
        image: around -1..1, or latents.
        timestep: of the first step, one for each picture.
        pure: begin with noise alone.
        keep: return the picture's latents even when they are not begun with.
    """
    checks.check_latents(latents, shape)
    if (image is None or timestep is None) and not pure:
        raise InputError(
            "Since strength < 1. initial latents are to be initialised as a combination of Image +"
            " Noise. However, either the image or the noise timestep has not been provided."
        )
    known = None
    if image is not None and (keep or (latents is None and not pure)):
        known = _encoded(pipeline, image, generator, device, dtype)
        known = _shared(known, shape[0], "images")
    if latents is not None:
        noise = latents.to(device, dtype)
        return noise * scheduler.init_noise_sigma, noise, known
    noise = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
    if pure or known is None:
        return noise * scheduler.init_noise_sigma, noise, known
    return scheduler.add_noise(known, noise, timestep), noise, known


def mask_latents(
    pipeline: Any,
    mask: Tensor,
    masked_image: Tensor,
    rows: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device | str,
    generator: Generators,
    guided: bool,
) -> tuple[Tensor, Tensor]:
    """The mask at the size of latents, and the latents of what it leaves, one per picture.

    In guidance both are there twice.
    """
    factor = pipeline.vae_scale_factor
    mask = nn.functional.interpolate(mask, size=(height // factor, width // factor))
    mask = _shared(mask.to(device, dtype), rows, "masks")
    rest = _encoded(pipeline, masked_image, generator, device, dtype)
    rest = _shared(rest, rows, "images")
    return (torch.cat([mask] * 2), torch.cat([rest] * 2)) if guided else (mask, rest)


def _encoded(
    pipeline: Any,
    image: Tensor,
    generator: Generators,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    if are_latents(image, pipeline.vae):
        return image.to(device, dtype)
    return stages.encode(pipeline.vae, image, generator, rows_to_encode(generator), device, dtype)


def _shared(tensor: Tensor, rows: int, what: str) -> Tensor:
    """One for each picture, in turn; ``what`` is for the message."""
    if len(tensor) > rows or rows % len(tensor):
        noun = "mask" if what == "masks" else what
        raise InputError(
            f"The passed {noun} and the required batch size don't match. {what.capitalize()} are"
            f" supposed to be duplicated to a total batch size of {rows}, but {len(tensor)} {what}"
            f" were passed. Make sure the number of {what} that you pass is divisible by the total"
            " requested batch size."
        )
    return fit_rows(tensor, rows)


def check_unet(unet: Any, channels: int, mask: Tensor, rest: Tensor) -> None:
    """Raise `InputError` unless the UNet takes latents, mask and masked picture together."""
    expected = unet.config.in_channels
    if expected not in (9, 2 * channels + 1):
        raise InputError(
            f"The unet {type(unet)} should have either 4 or 9 input channels, not {expected}.",
            hint="Load a model for inpainting, or a text-to-image model.",
        )
    parts = {"latents": channels, "mask": mask.shape[1], "masked_image": rest.shape[1]}
    check_channels(unet, parts)


def check_crop(padding: Any, image: Any, mask_image: Any, output_type: Any) -> None:
    """Drawing the region of the mask alone works on PIL pictures."""
    from PIL.Image import Image

    if padding is None:
        return
    checks.whole_number("padding_mask_crop", padding, 0, checks.MAX_SIDE)
    if not isinstance(image, Image):
        raise InputError(
            "The image should be a PIL image when inpainting mask crop, but is of type"
            f" {type(image)}."
        )
    if not isinstance(mask_image, Image):
        raise InputError(
            "The mask image should be a PIL image when inpainting mask crop, but is of type"
            f" {type(mask_image)}."
        )
    if output_type != "pil":
        raise InputError(
            f"The output type should be PIL when inpainting mask crop, but is {output_type}."
        )
