"""Inpainting under the control of a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from sfumato.diffusion.noise import Generators
from sfumato.pipelines import checks
from sfumato.pipelines.control import Controlled, read_control
from sfumato.pipelines.controlnet_base import ControlNetBase
from sfumato.pipelines.flow import draw
from sfumato.pipelines.image_processor import ImageInput, VaeImageProcessor
from sfumato.pipelines.inpaint import mask_processor_for
from sfumato.pipelines.mask import Masked, check_crop, region_to_draw
from sfumato.pipelines.output import StableDiffusionPipelineOutput
from sfumato.pipelines.request import Request
from sfumato.pipelines.start import size_of


class StableDiffusionControlNetInpaintPipeline(ControlNetBase):
    """Inpainting with ControlNets. For the components see `ControlNetBase`."""

    _callback_tensor_inputs: ClassVar[list[str]] = [
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "control_image",
        "mask",
        "masked_image_latents",
    ]

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
        control_image: ImageInput | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
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
        controlnet_conditioning_scale: float | list[float] = 0.5,
        guess_mode: bool = False,
        control_guidance_start: float | list[float] = 0.0,
        control_guidance_end: float | list[float] = 1.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Draw into pictures; the rest is as in `StableDiffusionInpaintPipeline.__call__`.

        Args:
            image: the picture to draw into.
            mask_image: white where to draw.
            control_image: what to go by; for several ControlNets a list with the pictures of each.
            height, width: what all are scaled to; by default the size of the picture.
            controlnet_conditioning_scale: strength of the ControlNet; a list for several.
            guess_mode: let the ControlNet guess what to draw, even without a prompt: its features
                are weaker at high resolutions and not felt by the negative half.
            control_guidance_start, control_guidance_end: the share of the steps at which the
                ControlNet begins and ends to act, 0..1; lists for several.
            callback_on_step_end_tensor_inputs: may also name ``control_image``, ``mask`` and
                ``masked_image_latents``.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range or contradicts another.
            TypeError: an argument is of the wrong type, or there is no such argument.
            NumericalError: NaN or infinity appeared.
        """
        request = Request.read(self, locals())
        checks.check_strength(strength)
        self.check_inputs(
            prompt,
            control_image,
            request.callback_steps,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            ip_adapter_image,
            ip_adapter_image_embeds,
            controlnet_conditioning_scale,
            control_guidance_start,
            control_guidance_end,
            request.callback_on_step_end_tensor_inputs,
        )
        check_crop(padding_mask_crop, image, mask_image, output_type)
        control = read_control(
            self,
            controlnet_conditioning_scale,
            control_guidance_start,
            control_guidance_end,
            guess_mode,
        )
        rows, columns = size_of(self.image_processor, image, height, width)
        checks.image_size(rows, columns)
        region = region_to_draw(self, mask_image, rows, columns, padding_mask_crop)
        masked = Masked(image, mask_image, None, rows, columns, region, strength, latents)
        controlled = Controlled(control, control_image, "control_image", rows, columns, region)
        return draw(self, request, masked, controlled, strength=strength)
