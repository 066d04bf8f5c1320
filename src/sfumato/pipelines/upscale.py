"""Four times larger: a UNet that works at the small picture's size and sees it beside the noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from sfumato.diffusion.noise import (
    Generators,
    NoiseSource,
    OneEach,
    before_start,
    randn_tensor,
)
from sfumato.errors import InputError
from sfumato.pipelines import checks, repairs, stages
from sfumato.pipelines.flow import Drawing, Network, Piece, check_channels, draw, fit_rows
from sfumato.pipelines.image_processor import ImageInput, VaeImageProcessor
from sfumato.pipelines.output import StableDiffusionPipelineOutput
from sfumato.pipelines.request import Request
from sfumato.pipelines.stable_diffusion_base import StableDiffusionBase
from sfumato.pipelines.start import FromNoise, as_rgb


class LowResolution(Piece):
    """A small picture, slightly noised, as further channels; the UNet is told how much noise.

    Draws the noise on the picture first, then that of the latents.

    Args:
        image: pictures.
        noise_level: timestep of the noise on them.
        latents: the latents' noise, in place of a random draw.
    """

    def __init__(self, image: Any, noise_level: int, latents: Tensor | None) -> None:
        self.image, self.noise_level, self.latents = as_rgb(image), noise_level, latents

    def prepare(self, drawing: Drawing) -> None:
        pipeline, request = drawing.pipeline, drawing.request
        image = pipeline.image_processor.preprocess(self.image)
        image = image.to(drawing.device, drawing.dtype)
        generator = before_start(request.generator)
        if isinstance(generator, OneEach | NoiseSource):
            image = fit_rows(image, drawing.pictures)
        elif isinstance(generator, list | tuple):  # one per drawing, of which there may be more
            generator = generator[: len(image)]
        noise = randn_tensor(image.shape, generator, drawing.device, drawing.dtype)
        level = torch.tensor([self.noise_level], device=drawing.device)
        self.small = pipeline.low_res_scheduler.add_noise(image, noise, level)
        channels = pipeline.vae.config.latent_channels
        check_channels(pipeline.unet, {"latents": channels, "image": image.shape[1]})
        shape = (drawing.pictures, channels, *image.shape[2:])
        if self.latents is not None and tuple(self.latents.shape) != shape:
            raise InputError(
                f"Unexpected latents shape, got {self.latents.shape}, expected {shape}"
            )
        factor = pipeline.vae_scale_factor
        height, width = (side * factor for side in image.shape[2:])
        FromNoise(height, width, self.latents, channels).prepare(drawing)

    def around(self, drawing: Drawing, network: Network) -> Network:
        def with_small(x: Tensor, timestep: Tensor, context: Tensor, **inputs: Any) -> Tensor:
            labels = torch.full((len(x),), self.noise_level, device=x.device)
            x = torch.cat([x, fit_rows(self.small, len(x))], dim=1)
            return network(x, timestep, context, class_labels=labels, **inputs)

        return with_small

    def finish(self, drawing: Drawing, images: Any) -> Any:
        watermarker = drawing.pipeline.watermarker
        if watermarker is None or drawing.request.output_type != "pil":
            return images
        return watermarker.apply_watermark(images)


class StableDiffusionUpscalePipeline(StableDiffusionBase):
    """Draws a picture four times as high and wide, with the x4 upscaler.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: see `StableDiffusionBase`.
        low_res_scheduler: noises the small picture.
        safety_checker, feature_extractor: see `StableDiffusionBase`.
        watermarker: has ``apply_watermark(pictures)``, or None.
        max_noise_level: the largest ``noise_level`` of a call.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = [
        "watermarker",
        "safety_checker",
        "feature_extractor",
    ]
    _outdated_settings: ClassVar[dict[str, Any]] = {}

    low_res_scheduler: Any
    watermarker: Any

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        low_res_scheduler: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        watermarker: Any = None,
        max_noise_level: int = 350,
    ) -> None:
        repairs.repair_upscaler(vae)
        self._set_up(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            low_res_scheduler=low_res_scheduler,
            scheduler=scheduler,
            safety_checker=safety_checker,
            watermarker=watermarker,
            feature_extractor=feature_extractor,
        )
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, resample="bicubic"
        )
        self.register_to_config(max_noise_level=max_noise_level)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: ImageInput | None = None,
        num_inference_steps: int = 75,
        guidance_scale: float = 9.0,
        noise_level: int = 20,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback: Callable[..., Any] | None = None,
        callback_steps: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        **kwargs: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Enlarge pictures. What is not listed is as in `StableDiffusionPipeline.__call__`.

        Args:
            prompt: what is in the picture.
            image: one small picture, or one per prompt.
            noise_level: how much noise to put on it, as a timestep: more leaves more to invent.
            latents: noise to start from, ``(batch, channels, height, width)`` of the small picture.
            callback: ``(step, timestep, latents)``.
            callback_steps: how often it is called.
            kwargs: arguments that diffusers does not have, such as ``seeds`` and ``guidance``.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range or contradicts another.
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
            NumericalError: NaN or infinity appeared.
        """
        request = Request.read(self, locals())
        self.check_inputs(
            prompt,
            image,
            noise_level,
            callback_steps,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
        )
        self._part("low_res_scheduler", "enlarging")
        return draw(self, request, LowResolution(image, noise_level, latents))

    def check_inputs(
        self,
        prompt: Any,
        image: Any,
        noise_level: Any,
        callback_steps: Any,
        negative_prompt: Any = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
    ) -> None:
        """Raise `InputError` when arguments of a call are wrong or contradict each other."""
        checks.require_callback_steps(callback_steps)
        checks.check_call(
            self, prompt, callback_steps, negative_prompt, prompt_embeds, negative_prompt_embeds
        )
        checks.check_pictures(image, Request(prompt=prompt, prompt_embeds=prompt_embeds).prompts)
        checks.whole_number("noise_level", noise_level, 0, 10**6)
        if noise_level > self.config.max_noise_level:
            raise InputError(
                f"`noise_level` has to be <= {self.config.max_noise_level} but is {noise_level}"
            )

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
        """Noise to start from; the size is that of the small picture."""
        shape = (batch_size, num_channels_latents, height, width)
        return stages.prepare_latents(self.scheduler, shape, dtype, device, generator, latents)
