"""What the pipelines with ControlNets share: the component, and the checks of control pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from sfumato.pipelines import checks, control
from sfumato.pipelines.image_processor import VaeImageProcessor
from sfumato.pipelines.request import Request
from sfumato.pipelines.stable_diffusion_base import StableDiffusionBase


class ControlNetBase(StableDiffusionBase):
    """Base of the pipelines that draw under the control of ControlNets (arXiv:2302.05543).

    Args:
        controlnet: a `ControlNetModel`, a list of them, or a `MultiControlNetModel`.
        vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor,
            image_encoder, requires_safety_checker: see `StableDiffusionBase`.
    """

    _outdated_settings: ClassVar[dict[str, Any]] = {}

    controlnet: Any

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        controlnet: Any,
        scheduler: Any,
        safety_checker: Any,
        feature_extractor: Any,
        image_encoder: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        self._set_up(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            controlnet=control.as_one(controlnet),
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )
        self._settle_safety(requires_safety_checker)

    @cached_property
    def control_image_processor(self) -> VaeImageProcessor:
        """Makes control pictures, which stay in 0..1."""
        return VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, do_convert_rgb=True, do_normalize=False
        )

    def check_inputs(
        self,
        prompt: Any,
        image: Any,
        callback_steps: Any,
        negative_prompt: Any = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        controlnet_conditioning_scale: Any = 1.0,
        control_guidance_start: Any = 0.0,
        control_guidance_end: Any = 1.0,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
    ) -> None:
        """Raise `InputError` when arguments are wrong; ``image`` is the control picture."""
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
        self.check_image(image, prompt, prompt_embeds)
        control.read_control(
            self, controlnet_conditioning_scale, control_guidance_start, control_guidance_end, False
        )

    def check_image(self, image: Any, prompt: Any, prompt_embeds: Tensor | None) -> None:
        """Raise unless there is a control picture for every ControlNet, and enough of them."""
        prompts = Request(prompt=prompt, prompt_embeds=prompt_embeds).prompts
        control.check_control_images(self, image, prompts)
