"""Text to image: the one flow, from a prompt to a picture, under diffusers' interface.

`StableDiffusionPipeline.__call__` checks its arguments, then embeds the prompt, plans the steps,
draws noise, denoises and decodes. Each of these is a function of its own elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.arguments import reject_unknown
from sfumato.diffusion.foreign import SchedulerRun
from sfumato.diffusion.guidance import rescale_noise_cfg
from sfumato.diffusion.noise import Generators
from sfumato.pipelines import checks, stages
from sfumato.pipelines.call import CallState
from sfumato.pipelines.output import StableDiffusionPipelineOutput
from sfumato.pipelines.stable_diffusion_base import StableDiffusionBase
from sfumato.pipelines.stages import retrieve_timesteps
from sfumato.pipelines.watch import Watcher, warn_of_legacy

__all__ = [
    "StableDiffusionPipeline",
    "StableDiffusionPipelineOutput",
    "rescale_noise_cfg",
    "retrieve_timesteps",
]


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
            kwargs: ``callback`` and ``callback_steps``, both deprecated.

        Returns:
            The pictures, and what the safety checker says of each.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range or contradicts another.
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
            NumericalError: NaN or infinity appeared.
        """
        reject_unknown(f"{type(self).__name__}()", kwargs, self._keywords())
        warn_of_legacy(kwargs)
        checks.check_callable("callback_on_step_end", callback_on_step_end)
        checks.check_callable("callback", kwargs.get("callback"))
        tensor_inputs = getattr(
            callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs
        )
        for name in ("unet", "scheduler", *(() if output_type == "latent" else ("vae",))):
            self._part(name, "drawing")
        height, width = self._full_size(height, width)
        self.check_inputs(
            prompt,
            height,
            width,
            kwargs.get("callback_steps"),
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            ip_adapter_image,
            ip_adapter_image_embeds,
            tensor_inputs,
        )
        state = CallState(
            guidance_scale=checks.finite_number("guidance_scale", guidance_scale),
            guidance_rescale=checks.finite_number("guidance_rescale", guidance_rescale),
            clip_skip=clip_skip,
            cross_attention_kwargs=checks.optional_dict(
                "cross_attention_kwargs", cross_attention_kwargs
            ),
        )
        eta = checks.finite_number("eta", eta, 0, 1)
        train_steps = self.scheduler.config.get("num_train_timesteps", 1000)
        checks.check_steps(num_inference_steps, timesteps, sigmas, train_steps)
        images = checks.whole_number(
            "num_images_per_prompt", num_images_per_prompt, 1, checks.MAX_IMAGES_PER_PROMPT
        )
        shape = self._latent_shape(prompt, prompt_embeds, images, height, width)
        checks.check_generator(generator, shape[0])
        checks.check_latents(latents, shape)

        with self._running(state), stages.borrow(self.scheduler) as scheduler:
            device = self._execution_device
            positive, negative = self.encode_prompt(
                prompt,
                device,
                images,
                self.do_classifier_free_guidance,
                negative_prompt,
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                lora_scale=(cross_attention_kwargs or {}).get("scale"),
                clip_skip=clip_skip,
            )
            dtype = positive.dtype
            context = positive
            if self.do_classifier_free_guidance and negative is not None:
                context = torch.cat([negative, positive])
            conditions = self._conditions(
                ip_adapter_image, ip_adapter_image_embeds, shape[0], dtype, device
            )
            plan, steps = retrieve_timesteps(
                scheduler, num_inference_steps, device, timesteps, sigmas
            )
            x = stages.prepare_latents(scheduler, shape, dtype, device, generator, latents)
            run = SchedulerRun(scheduler, plan, generator=generator, eta=eta)
            state.num_timesteps = len(run)
            watch = Watcher(
                self,
                count=len(run),
                steps=steps,
                order=getattr(scheduler, "order", 1),
                on_step_end=callback_on_step_end,
                tensor_inputs=tensor_inputs,
                negative=negative,
                **kwargs,
            )
            x = self._denoise(conditions, x, context, run, watch)
            output = self._to_output(x, output_type, generator, dtype)
        return output if return_dict else (output.images, output.nsfw_content_detected)

    def _latent_shape(
        self, prompt: Any, prompt_embeds: Tensor | None, images: int, height: int, width: int
    ) -> tuple[int, int, int, int]:
        if isinstance(prompt, str):
            prompts = 1
        else:
            prompts = len(prompt) if prompt_embeds is None else len(prompt_embeds)
        factor = self.vae_scale_factor
        channels = self.unet.config.in_channels
        return prompts * images, channels, height // factor, width // factor

    def check_inputs(
        self,
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
        """Raise `InputError` when arguments of a call are wrong or contradict each other."""
        checks.image_size(height, width)
        checks.check_callbacks(
            callback_steps, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        checks.check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        checks.check_image_prompts(ip_adapter_image, ip_adapter_image_embeds)
        for name, embeds in (
            ("prompt_embeds", prompt_embeds),
            ("negative_prompt_embeds", negative_prompt_embeds),
        ):
            checks.check_embedding_width(name, embeds, getattr(self.unet, "config", None))

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
    ) -> Tensor:
        """Noise to start from, at the scheduler's initial strength."""
        factor = self.vae_scale_factor
        shape = (batch_size, num_channels_latents, height // factor, width // factor)
        checks.check_generator(generator, batch_size)
        return stages.prepare_latents(self.scheduler, shape, dtype, device, generator, latents)
