"""Wide pictures, drawn in overlapping windows of the size that the model knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from sfumato.diffusion.noise import Generators
from sfumato.pipelines import checks
from sfumato.pipelines.flow import draw
from sfumato.pipelines.output import StableDiffusionPipelineOutput
from sfumato.pipelines.request import Request
from sfumato.pipelines.stable_diffusion import check_text_inputs
from sfumato.pipelines.stable_diffusion_base import StableDiffusionBase
from sfumato.pipelines.start import FromNoise, prepare_noise
from sfumato.pipelines.views import View, Views, decode_circle, list_views


class StableDiffusionPanoramaPipeline(StableDiffusionBase):
    """Draws pictures wider or higher than the model was trained for (arXiv:2302.08113).

    For the components see `StableDiffusionBase`.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _outdated_settings: ClassVar[dict[str, Any]] = {}

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = 512,
        width: int | None = 2048,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float = 7.5,
        view_batch_size: int = 1,
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
        guidance_rescale: float = 0.0,
        circular_padding: bool = False,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Draw pictures. What is not listed is as in `StableDiffusionPipeline.__call__`.

        Args:
            view_batch_size: how many windows the network sees at once; more take more memory.
            circular_padding: join the left edge to the right one.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range or contradicts another.
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
            NumericalError: NaN or infinity appeared.
        """
        request = Request.read(self, locals())
        height, width = self._full_size(height or None, width or None)
        self.check_inputs(
            prompt,
            height,
            width,
            request.callback_steps,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            ip_adapter_image,
            ip_adapter_image_embeds,
            request.callback_on_step_end_tensor_inputs,
        )
        batch = checks.whole_number("view_batch_size", view_batch_size, 1, 10_000)
        around = partial(decode_circle, self.vae, scale=self.vae_scale_factor)
        return draw(
            self,
            request,
            FromNoise(height, width, latents),
            Views(batch, circular_padding),
            decode=around if circular_padding else None,
        )

    def get_views(
        self,
        panorama_height: int,
        panorama_width: int,
        window_size: int = 64,
        stride: int = 8,
        circular_padding: bool = False,
    ) -> list[View]:
        """Windows ``(top, bottom, left, right)`` in latents, for a size in pixels."""
        factor = self.vae_scale_factor
        height, width = panorama_height // factor, panorama_width // factor
        return list_views(height, width, window_size, stride, circular_padding)

    def decode_latents_with_padding(self, latents: Tensor, padding: int = 8) -> Tensor:
        """Latents to pictures whose edges join; see `views.decode_circle`."""
        return decode_circle(self.vae, latents, self.vae_scale_factor, padding)

    check_inputs = check_text_inputs
    prepare_latents = prepare_noise
