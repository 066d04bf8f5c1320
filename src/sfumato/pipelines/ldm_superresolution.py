"""Larger pictures with the paper's model: a UNet that sees the small picture beside the latents.

Its latents are of the small picture's size, so pictures grow by the factor of the first stage (4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor

from sfumato.diffusion.noise import Generators
from sfumato.errors import InputError
from sfumato.pipelines import checks
from sfumato.pipelines.flow import ChannelPiece, Drawing, Network, check_channels, draw, fit_rows
from sfumato.pipelines.image_processor import VaeImageProcessor
from sfumato.pipelines.latent_diffusion import (
    LatentRequest,
    VqvaePipeline,
    decode_first_stage,
)
from sfumato.pipelines.output import ImagePipelineOutput
from sfumato.pipelines.request import Request
from sfumato.pipelines.start import FromNoise, as_rgb

#: Sides of PIL pictures are cut to multiples of this, as the UNet halves them often.
MULTIPLE = 32


class BesideLatents(ChannelPiece):
    """A picture of the latents' size as further channels.

    As in diffusers, schedulers that scale their input (Euler, LMS) scale the picture with it.

    Args:
        image: around -1..1, ``(N, channels, height, width)``, a row for each picture to draw.
    """

    def __init__(self, image: Tensor) -> None:
        self.image = image

    def check(self, pipeline: Any, request: Request) -> None:
        channels = pipeline.unet.config.out_channels
        check_channels(pipeline.unet, {"latents": channels, "image": self.image.shape[1]})
        if not torch.isfinite(self.image).all():
            raise InputError("`image` has NaN or infinity in it.")

    def prepare(self, drawing: Drawing) -> None:
        image = self.image.to(drawing.device, drawing.network_dtype)
        images = drawing.pictures // len(image)
        drawing.tensors["image"] = image.repeat_interleave(images, 0)
        factor = drawing.pipeline.vae_scale_factor
        drawing.size = image.shape[2] * factor, image.shape[3] * factor

    def around(self, drawing: Drawing, network: Network) -> Network:
        def wider(x: Tensor, timestep: Tensor, context: Any, **inputs: Any) -> Tensor:
            image = drawing.scheduler.scale_model_input(drawing.tensor("image"), timestep)
            image = fit_rows(image.to(x.dtype), len(x))
            return network(torch.cat([x, image], dim=1), timestep, context, **inputs)

        return wider


class LDMSuperResolutionPipeline(VqvaePipeline):
    """Enlarges pictures with a latent diffusion model.

    Args:
        vqvae: the first stage, `VQModel` or `AutoencoderKL`.
        unet: `UNet2DModel`, whose input is the latents and the picture.
        scheduler: which noise levels to pass through, and how.
    """

    _made_for: ClassVar[tuple[str, ...]] = ("LDMSuperResolutionPipeline",)

    @cached_property
    def small_image_processor(self) -> VaeImageProcessor:
        """Makes tensors of small pictures."""
        return VaeImageProcessor(vae_scale_factor=MULTIPLE)

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor | Image | Sequence[Image] | None = None,
        batch_size: int | None = 1,
        num_inference_steps: int | None = 100,
        eta: float | None = 0.0,
        generator: Generators = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        *,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        latents: Tensor | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Enlarge pictures. What is not listed is as in `StableDiffusionPipeline.__call__`.

        Args:
            image: a PIL picture (whose sides are cut to multiples of 32), several of one size, or
                a tensor ``(N, 3, height, width)`` in -1..1. Any size does: the network is
                convolutional.
            batch_size: of no effect, as in diffusers: every picture is drawn once. For several
                of one, pass several ``seeds``.
            generator: also of the noise that ``eta`` adds, which diffusers draws from the global
                generator.
            latents: the noise to start from, of the small picture's size.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range or contradicts another.
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
            NumericalError: NaN or infinity appeared.
        """
        small = self._preprocess(image)
        request = LatentRequest.read(self, {**locals(), "batch_size": len(small)})
        channels = self.unet.config.in_channels // 2
        return draw(
            self,
            request,
            BesideLatents(small),
            FromNoise(latents=latents, channels=channels),
            decode=self._decode,
        )

    def _preprocess(self, image: Any) -> Tensor:
        """Pictures as a tensor around -1..1."""
        if isinstance(image, Tensor):
            if image.ndim != 4 or not image.is_floating_point() or 0 in image.shape:
                raise InputError(
                    "`image` has to be a floating-point tensor (N, channels, height, width) but is"
                    f" {image.dtype} of shape {tuple(image.shape)}."
                )
            return image
        pictures = image if isinstance(image, list | tuple) else [image]
        if not pictures or not all(isinstance(one, Image) for one in pictures):
            raise InputError(
                "`image` has to be of type `PIL.Image.Image` or `torch.Tensor` but is"
                f" {type(image)}"
            )
        for one in pictures:
            for name, side in (("height", one.height), ("width", one.width)):
                checks.whole_number(f"image.{name}", side, MULTIPLE, checks.MAX_SIDE)
        return self.small_image_processor.preprocess(as_rgb(pictures))

    def _decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures; they are not scaled in the models of this kind."""
        return decode_first_stage(self.vqvae, latents)
