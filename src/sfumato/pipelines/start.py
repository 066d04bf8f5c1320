"""Where latents begin: as noise, or as a given picture with noise on top."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sfumato.diffusion.noise import Generators, randn_tensor
from sfumato.errors import InputError
from sfumato.pipelines import checks, stages
from sfumato.pipelines.flow import Drawing, Piece


class FromNoise(Piece):
    """Latents that begin as noise: text to image.

    Args:
        height, width: of the pictures in pixels.
        latents: the noise itself, in place of a random draw.
        channels: of the latents; by default as many as the UNet takes.
    """

    def __init__(
        self, height: int, width: int, latents: Tensor | None = None, channels: int | None = None
    ) -> None:
        self.height, self.width, self.latents, self.channels = height, width, latents, channels

    def prepare(self, drawing: Drawing) -> None:
        pipeline, request = drawing.pipeline, drawing.request
        factor = pipeline.vae_scale_factor
        channels = pipeline.unet.config.in_channels if self.channels is None else self.channels
        shape = (drawing.pictures, channels, self.height // factor, self.width // factor)
        checks.check_latents(self.latents, shape)
        drawing.x = stages.prepare_latents(
            drawing.scheduler,
            shape,
            drawing.dtype,
            drawing.device,
            request.generator,
            self.latents,
        )


class FromImage(Piece):
    """Latents that begin as a picture, noised to the level of the first step: image to image.

    The picture is encoded first and the noise drawn second, from the same generators.

    Args:
        image: pictures, or latents of them.
        height, width: what to scale the pictures to; by default their own size.
    """

    def __init__(self, image: Any, height: int | None = None, width: int | None = None) -> None:
        self.image, self.height, self.width = image, height, width

    def prepare(self, drawing: Drawing) -> None:
        pipeline, request = drawing.pipeline, drawing.request
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
