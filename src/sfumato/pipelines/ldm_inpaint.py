"""Filling what a mask covers, with the paper's model: a UNet that sees the rest of the picture.

Beside the noisy latents it is given the latents of the picture with the masked part black, and the
mask at the latents' size; both around -1..1, as the model was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sfumato.diffusion.noise import Generators
from sfumato.errors import InputError
from sfumato.pipelines import stages
from sfumato.pipelines.flow import ChannelPiece, Drawing, check_channels, draw
from sfumato.pipelines.image_processor import ImageInput, VaeImageProcessor
from sfumato.pipelines.inpaint import mask_processor_for
from sfumato.pipelines.latent_diffusion import (
    LatentRequest,
    VqvaePipeline,
    decode_first_stage,
)
from sfumato.pipelines.output import ImagePipelineOutput
from sfumato.pipelines.request import Request
from sfumato.pipelines.start import FromNoise, as_rgb

#: A masked pixel.
BLACK = -1.0


class MaskedPicture(ChannelPiece):
    """The rest of a picture, and the mask, as further channels.

    Args:
        image: around -1..1, ``(N, 3, height, width)``, a row for each picture to draw, or one.
        mask: ``(N, 1, height, width)`` or one, 1 where to draw and 0 elsewhere.
    """

    channels = ("masked_image_latents", "mask")

    def __init__(self, image: Tensor, mask: Tensor) -> None:
        self.image, self.mask = image, mask

    def check(self, pipeline: Any, request: Request) -> None:
        channels = pipeline.unet.config.out_channels
        parts = {"latents": channels, "masked_image_latents": channels, "mask": 1}
        check_channels(pipeline.unet, parts)

    def prepare(self, drawing: Drawing) -> None:
        images = drawing.pictures // len(self.image)
        image, mask = (
            part.to(drawing.device).repeat_interleave(images, 0) for part in (self.image, self.mask)
        )
        rest = torch.where(mask < 0.5, image, BLACK)
        latents = stages.most_likely(drawing.pipeline.vae, rest, drawing.network_dtype)
        small = nn.functional.interpolate(2 * mask - 1, size=latents.shape[-2:])
        self.whole = image, mask
        drawing.tensors |= {"masked_image_latents": latents, "mask": small.to(latents.dtype)}
        drawing.size = image.shape[-2], image.shape[-1]

    def paste(self, drawn: Tensor) -> Tensor:
        """What was drawn where the mask is, in the picture as it was given."""
        image, mask = (part.to(drawn) for part in self.whole)
        return image * (1 - mask) + drawn * mask


class LDMInpaintPipeline(VqvaePipeline):
    """Draws what a mask covers with the paper's inpainting model, which knows no text.

    Args:
        vqvae: the first stage, `VQModel` or `AutoencoderKL`.
        unet: `UNet2DModel`, whose input is the latents, those of the rest of the picture, and the
            mask.
        scheduler: which noise levels to pass through, and how.
    """

    _made_for: ClassVar[tuple[str, ...]] = ("LDMInpaintPipeline",)

    @cached_property
    def mask_processor(self) -> VaeImageProcessor:
        """Makes masks of zeros and ones out of pictures."""
        return mask_processor_for(self)

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | None = None,
        mask_image: ImageInput | None = None,
        batch_size: int = 1,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Fill. What is not listed is as in `StableDiffusionInpaintPipeline.__call__`.

        Args:
            image: one picture or several of one size, which stays as it is outside of the mask.
            mask_image: one mask for all, or one per picture; white is drawn anew.
            batch_size: how many pictures, of each that is given.
            height, width: in pixels, by default those of the picture, cut to a multiple of the
                first stage's factor.
            latents: the noise to start from.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range or contradicts another.
            ImageError: (a ``ValueError``) a picture is of no known form.
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
            NumericalError: NaN or infinity appeared.
        """
        arguments = locals()
        if image is None or mask_image is None:
            raise InputError("Inpainting takes an `image` and a `mask_image`.")
        if height is not None or width is not None:
            height, width = self._size(height, width)
        picture = self.image_processor.preprocess(as_rgb(image), height, width).float()
        size = picture.shape[-2], picture.shape[-1]
        mask = self.mask_processor.preprocess(mask_image, *size).float()
        if len(mask) not in (1, len(picture)):
            raise InputError(f"There are {len(mask)} masks for {len(picture)} pictures.")
        arguments |= {"batch_size": len(picture), "num_images_per_prompt": batch_size}
        request = LatentRequest.read(self, arguments)
        masked = MaskedPicture(picture, mask.expand(len(picture), -1, -1, -1))
        noise = FromNoise(latents=latents, channels=self.unet.config.out_channels)

        def decode(x: Tensor) -> Tensor:
            drawn = decode_first_stage(self.vqvae, x / self.vqvae.config.scaling_factor)
            return masked.paste(drawn)

        return draw(self, request, masked, noise, decode=decode)
