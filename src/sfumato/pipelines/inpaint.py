"""Inpainting: drawing anew where a mask is white, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from sfumato.diffusion.noise import Generators
from sfumato.errors import InputError
from sfumato.pipelines import checks
from sfumato.pipelines.flow import draw
from sfumato.pipelines.image_processor import ImageInput, VaeImageProcessor
from sfumato.pipelines.mask import (
    Masked,
    check_crop,
    mask_latents,
    region_to_draw,
    start_of_masked,
)
from sfumato.pipelines.output import StableDiffusionPipelineOutput
from sfumato.pipelines.request import Request
from sfumato.pipelines.stable_diffusion_base import StableDiffusionBase


def mask_processor_for(pipeline: Any) -> VaeImageProcessor:
    """What makes masks of zeros and ones out of pictures, at the size that a pipeline wants."""
    return VaeImageProcessor(
        vae_scale_factor=pipeline.vae_scale_factor,
        do_normalize=False,
        do_binarize=True,
        do_convert_grayscale=True,
    )


class StableDiffusionInpaintPipeline(StableDiffusionBase):
    """Draws into a picture where a mask is white, with an inpainting model or any other.

    For the components see `StableDiffusionBase`.
    """

    _callback_tensor_inputs: ClassVar[list[str]] = [
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "mask",
        "masked_image_latents",
    ]
    _outdated_settings: ClassVar[dict[str, Any]] = {"steps_offset": 1, "skip_prk_steps": True}

    @cached_property
    def mask_processor(self) -> VaeImageProcessor:
        """Makes masks of zeros and ones out of pictures."""
        return mask_processor_for(self)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: ImageInput | None = None,
        mask_image: ImageInput | None = None,
        masked_image_latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[Tensor] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Draw into pictures. What is not listed is as in `StableDiffusionPipeline.__call__`.

        Args:
            image: one picture for all, or one per prompt; scaled to ``height`` and ``width``.
            mask_image: masks for them: white is drawn anew, black is kept.
            masked_image_latents: latents of the picture with the masked part blanked, when they
                are at hand.
            padding_mask_crop: draw the region of the mask and so many pixels around it at full
                size, and put it back into the picture. For PIL pictures.
            strength: how far to noise what the mask covers, 0..1; at 1 nothing of it is left.
            callback_on_step_end_tensor_inputs: may also name ``mask`` and
                ``masked_image_latents``.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range or contradicts another.
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
            NumericalError: NaN or infinity appeared.
        """
        request = Request.read(self, locals())
        height, width = self._full_size(height, width)
        self.check_inputs(
            prompt,
            image,
            mask_image,
            height,
            width,
            strength,
            request.callback_steps,
            output_type,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            ip_adapter_image,
            ip_adapter_image_embeds,
            request.callback_on_step_end_tensor_inputs,
            padding_mask_crop,
        )
        piece = Masked(
            image,
            mask_image,
            masked_image_latents,
            height,
            width,
            region_to_draw(self, mask_image, height, width, padding_mask_crop),
            strength,
            latents,
        )
        return draw(self, request, piece, strength=strength)

    def check_inputs(
        self,
        prompt: Any,
        image: Any,
        mask_image: Any,
        height: Any,
        width: Any,
        strength: Any,
        callback_steps: Any,
        output_type: Any,
        negative_prompt: Any = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        padding_mask_crop: Any = None,
    ) -> None:
        """Raise `InputError` when arguments of a call are wrong or contradict each other."""
        checks.check_strength(strength)
        checks.image_size(height, width)
        checks.check_call(
            self,
            prompt,
            callback_steps,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            ip_adapter_image,
            ip_adapter_image_embeds,
            callback_on_step_end_tensor_inputs,
        )
        check_crop(padding_mask_crop, image, mask_image, output_type)

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device | str,
        generator: Generators,
        latents: Tensor | None = None,
        image: Tensor | None = None,
        timestep: Tensor | None = None,
        is_strength_max: bool = True,
        return_noise: bool = False,
        return_image_latents: bool = False,
    ) -> tuple[Tensor, ...]:
        """Latents to begin with; on request the noise in them and the picture's own latents."""
        if return_image_latents and image is None:
            raise InputError("`return_image_latents` needs an `image`.")
        checks.check_generator(generator, batch_size)
        factor = self.vae_scale_factor
        start, noise, known = start_of_masked(
            self,
            self.scheduler,
            (batch_size, num_channels_latents, height // factor, width // factor),
            dtype,
            device,
            generator,
            latents=latents,
            image=image,
            timestep=timestep,
            pure=is_strength_max,
            keep=return_image_latents,
        )
        asked = ((start, True), (noise, return_noise), (known, return_image_latents))
        return tuple(tensor for tensor, wanted in asked if wanted and tensor is not None)

    def prepare_mask_latents(
        self,
        mask: Tensor,
        masked_image: Tensor,
        batch_size: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device | str,
        generator: Generators,
        do_classifier_free_guidance: bool,
    ) -> tuple[Tensor, Tensor]:
        """The mask and the masked picture at the size of latents; see `sfumato.pipelines.mask`."""
        return mask_latents(
            self,
            mask,
            masked_image,
            batch_size,
            height,
            width,
            dtype,
            device,
            generator,
            do_classifier_free_guidance,
        )
