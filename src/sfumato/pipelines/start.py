"""Where latents begin: as noise, or as a given picture with noise on top."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato.diffusion.noise import Generators, OneEach, randn_tensor
from sfumato.errors import InputError
from sfumato.pipelines import checks, stages
from sfumato.pipelines.flow import Drawing, Piece
from sfumato.pipelines.image_processor import VaeImageProcessor
from sfumato.pipelines.request import Request


class FromNoise(Piece):
    """Latents that begin as noise: text to image.

    Args:
        height, width: of the pictures in pixels; None takes the size that an earlier piece found.
        latents: the noise itself, in place of a random draw.
        channels: of the latents; by default as many as the UNet takes.
    """

    def __init__(
        self,
        height: int | None = None,
        width: int | None = None,
        latents: Tensor | None = None,
        channels: int | None = None,
    ) -> None:
        self.size = None if height is None or width is None else (height, width)
        self.latents, self.channels = latents, channels

    def check(self, pipeline: Any, request: Request) -> None:
        if self.size is not None:
            checks.check_latents(self.latents, self._shape(pipeline, request, self.size))

    def prepare(self, drawing: Drawing) -> None:
        request = drawing.request
        size = self.size or drawing.size
        if size is None:
            raise InputError("The size of the pictures is not known.")
        shape = self._shape(drawing.pipeline, request, size)
        if self.size is None:
            checks.check_latents(self.latents, shape)
        drawing.x = stages.prepare_latents(
            drawing.scheduler,
            shape,
            drawing.dtype,
            drawing.device,
            request.generator,
            self.latents,
        )

    def _shape(
        self, pipeline: Any, request: Request, size: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        channels = pipeline.unet.config.in_channels if self.channels is None else self.channels
        factor = pipeline.vae_scale_factor
        return (request.pictures, channels, size[0] // factor, size[1] // factor)


class FromImage(Piece):
    """Latents that begin as a picture, noised to the level of the first step: image to image.

    The picture is encoded first and the noise drawn second, from the same generators.

    Args:
        image: pictures, or latents of them.
        height, width: what to scale the pictures to; by default their own size.
        latents: a start that is finished already, in place of all this.
    """

    def __init__(
        self,
        image: Any,
        height: int | None = None,
        width: int | None = None,
        latents: Tensor | None = None,
    ) -> None:
        self.image, self.height, self.width, self.latents = image, height, width, latents

    def check(self, pipeline: Any, request: Request) -> None:
        channels = pipeline.vae.config.latent_channels
        checks.check_latents(self.latents, (request.pictures, channels, 0, 0))

    def prepare(self, drawing: Drawing) -> None:
        pipeline, request = drawing.pipeline, drawing.request
        if self.latents is not None:
            drawing.x = self.latents.to(drawing.device, drawing.dtype)
            return
        image = pipeline.image_processor.preprocess(
            as_rgb(self.image), height=self.height, width=self.width
        )
        drawing.x = noised_image(
            pipeline.vae,
            drawing.scheduler,
            image,
            drawing.timesteps[:1].repeat(drawing.pictures),
            drawing.dtype,
            drawing.device,
            request.generator,
            drawing.pictures,
        )


def noised_image(
    vae: Any,
    scheduler: Any,
    image: Tensor,
    timesteps: Tensor,
    dtype: torch.dtype,
    device: torch.device | str,
    generator: Generators,
    count: int,
) -> Tensor:
    """A preprocessed picture as latents with noise on top.

    Args:
        vae, scheduler: encode, and add noise.
        image: pictures around -1..1, or latents.
        timesteps: the level of the noise for each of ``count`` results; none for no noise.
        dtype, device: of the result.
        generator: for encoding and for the noise, in this order.
        count: how many; the pictures are shared out in turn.

    Raises:
        InputError: when there are more pictures than ``count``, or they cannot be shared evenly.
    """
    latents = image.to(device, dtype)
    if not are_latents(image, vae):
        rows = count if isinstance(generator, list | tuple) else len(image)
        check_sharing(len(image), count)
        latents = stages.encode(vae, image, generator, rows, device, dtype)
    check_sharing(len(latents), count)
    latents = latents.repeat(count // len(latents), 1, 1, 1)
    noise = randn_tensor(latents.shape, generator=generator, device=device, dtype=dtype)
    return scheduler.add_noise(latents, noise, timesteps) if len(timesteps) else latents


def rows_to_encode(generator: Generators) -> int | None:
    """How often to draw from encoded pictures; None for once from each of them."""
    return len(generator) if isinstance(generator, OneEach) else None


def are_latents(image: Tensor, vae: Any) -> bool:
    """Whether a tensor has an autoencoder's latents rather than pictures in it, by its channels."""
    channels = vae.config.latent_channels
    return image.shape[1] == channels and channels != getattr(vae.config, "in_channels", 3)


def check_sharing(images: int, count: int) -> None:
    """Raise `InputError` unless so many pictures can be shared out evenly."""
    if images > count or count % images:
        raise InputError(
            f"Cannot duplicate `image` of batch size {images} to {count} text prompts.",
            hint="Pass one picture, or one per prompt.",
        )


def size_of(
    processor: VaeImageProcessor, image: Any, height: int | None, width: int | None
) -> tuple[int, int]:
    """The size asked for, else that of a picture in whichever form, as a processor cuts it."""
    first = image[0] if isinstance(image, list | tuple) and image else image
    if isinstance(first, np.ndarray | Tensor) and first.ndim == 3:
        first = first[None]
    if not isinstance(first, Image.Image | np.ndarray | Tensor):
        raise InputError(f"`image` has to be a picture but is {type(image)}.")
    return processor.get_default_height_width(first, height, width)


def as_rgb(image: Any) -> Any:
    """PIL pictures of other modes (grey, palette, transparent) in RGB; all else as it is."""
    if isinstance(image, list | tuple):
        return [as_rgb(item) for item in image]
    return image.convert("RGB") if isinstance(image, Image.Image) else image


def prepare_latents(
    self: Any,
    image: Tensor,
    timestep: Tensor,
    batch_size: int,
    num_images_per_prompt: int,
    dtype: torch.dtype,
    device: torch.device | str,
    generator: Generators = None,
) -> Tensor:
    """The method of that name in pipelines that begin with a picture; see `noised_image`."""
    count = batch_size * num_images_per_prompt
    checks.check_generator(generator, count)
    return noised_image(self.vae, self.scheduler, image, timestep, dtype, device, generator, count)


def prepare_noise(
    self: Any,
    batch_size: int,
    num_channels_latents: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device | str,
    generator: Generators,
    latents: Tensor | None = None,
) -> Tensor:
    """The method ``prepare_latents`` of pipelines that begin with noise; the size is in pixels."""
    factor = self.vae_scale_factor
    shape = (batch_size, num_channels_latents, height // factor, width // factor)
    checks.check_generator(generator, batch_size)
    return stages.prepare_latents(self.scheduler, shape, dtype, device, generator, latents)
