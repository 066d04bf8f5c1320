"""Text to image: the one flow, from a prompt to a picture, under diffusers' interface.

`StableDiffusionPipeline.__call__` checks its arguments and calls the flow (`flow.draw`) with one
piece: the latents begin as noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.diffusion.guidance import rescale_noise_cfg
from sfumato.diffusion.noise import Generators
from sfumato.pipelines import checks
from sfumato.pipelines.flow import draw
from sfumato.pipelines.output import StableDiffusionPipelineOutput
from sfumato.pipelines.request import Request
from sfumato.pipelines.stable_diffusion_base import StableDiffusionBase
from sfumato.pipelines.stages import retrieve_timesteps
from sfumato.pipelines.start import FromNoise, prepare_noise

__all__ = [
    "StableDiffusionPipeline",
    "StableDiffusionPipelineOutput",
    "rescale_noise_cfg",
    "retrieve_timesteps",
]


def check_text_inputs(
    self: Any,
    prompt: Any,
    height: Any,
    width: Any,
    callback_steps: Any,
    negative_prompt: Any = None,
    prompt_embeds: Any = None,
    negative_prompt_embeds: Any = None,
    ip_adapter_image: Any = None,
    ip_adapter_image_embeds: Any = None,
    callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
) -> None:
    """The method ``check_inputs`` of pipelines that begin with noise; raises `InputError`."""
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


class StableDiffusionPipeline(StableDiffusionBase):
    """Text-to-image generation with latent diffusion (arXiv:2112.10752).

    For the components see `StableDiffusionBase`.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
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
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Draw pictures.

        Args:
            prompt: what to draw, one text or a list of them.
            height: of the pictures in pixels, divisible by 8; by default what the UNet was
                trained on. So is ``width``; each by itself.
            width: likewise.
            num_inference_steps: more steps are slower and mostly better.
            timesteps: timesteps of your own, descending, for schedulers that take them.
            sigmas: noise levels of your own, descending, for schedulers that take them.
            guidance_scale: how closely to follow the prompt; 1 or less switches guidance off.
            negative_prompt: what not to draw; of the same type as ``prompt``.
            num_images_per_prompt: pictures of each prompt.
            eta: share of fresh noise in DDIM's steps, 0..1 (arXiv:2010.02502).
            generator: source of randomness: one for all, or a list with one per picture.
            latents: noise to start from, ``(batch, channels, height / 8, width / 8)``.
            prompt_embeds: embeddings in place of ``prompt``, ``(batch, tokens, width)``.
            negative_prompt_embeds: embeddings in place of ``negative_prompt``.
            ip_adapter_image: picture as prompt, one per IP-Adapter.
            ip_adapter_image_embeds: its embeddings, per IP-Adapter.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``; see `VaeImageProcessor`.
            return_dict: return an output object rather than a tuple.
            cross_attention_kwargs: handed to the UNet; ``scale`` also weakens LoRA layers.
            guidance_rescale: restores contrast lost to guidance, 0..1 (arXiv:2305.08891).
            clip_skip: leave out so many of the text encoder's last layers.
            callback_on_step_end: ``(pipeline, step, timestep, tensors) -> tensors``, called after
                every step; may change tensors, or set ``pipeline._interrupt = True`` to stop.
            callback_on_step_end_tensor_inputs: which of ``latents``, ``prompt_embeds`` and
                ``negative_prompt_embeds`` it gets.
            kwargs: what diffusers' call does not have: ``prompt_syntax`` and ``loras`` (how to read
                prompts: docs/prompts.md), ``seeds``, ``rng``, ``variation_seed``,
                ``variation_strength`` and ``seed_resize_from`` (docs/seeds.md), and ``guidance``
                (docs/guidance.md); ``callback`` and ``callback_steps``, both deprecated.

        Returns:
            The pictures, and what the safety checker says of each.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range or contradicts another.
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
            NumericalError: NaN or infinity appeared.
        """
        request = Request.read(self, locals())
        height, width = self._full_size(height, width)
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
        return draw(self, request, FromNoise(height, width, latents))

    check_inputs = check_text_inputs
    prepare_latents = prepare_noise
