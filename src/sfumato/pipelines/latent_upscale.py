"""Twice as large among latents: a UNet of k-diffusion's kind that sees the small latents.

The network is preconditioned as Karras et al. do (arXiv:2206.00364, table 1, with data of standard
deviation 1), and is told the text's pooled embedding beside the time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sfumato.diffusion.levels import Levels
from sfumato.diffusion.noise import Generators
from sfumato.errors import InputError
from sfumato.pipelines import checks, stages
from sfumato.pipelines.flow import Drawing, Network, Piece, check_channels, draw, fit_rows
from sfumato.pipelines.image_processor import ImageInput, VaeImageProcessor
from sfumato.pipelines.output import ImagePipelineOutput
from sfumato.pipelines.request import Request
from sfumato.pipelines.stable_diffusion_base import StableDiffusionBase
from sfumato.pipelines.start import FromNoise, as_rgb, rows_to_encode
from sfumato.pipelines.upscale import StableDiffusionUpscalePipeline
from sfumato.text.conditioning import TextEncoding, negative_texts

logger = logging.getLogger(__name__)

#: The small latents get no noise; the network was trained with some and is told its strength in
#: so many cosines and sines.
_NOISE_WAVES = 64


class SmallLatents(Piece):
    """Small latents, each pixel four times, as further channels; and what the network means.

    Args:
        image: pictures, or latents of them.
        latents: noise to start from, of which the size is checked.
    """

    needs_steps = "latent upscalers"

    def __init__(self, image: Any, latents: Tensor | None) -> None:
        self.image, self.latents = as_rgb(image), latents

    def check(self, pipeline: Any, request: Request) -> None:
        if pipeline.scheduler.config.get("prediction_type") not in ("sample", "original_sample"):
            logger.warning(
                "The latent upscaler gives finished pictures to its scheduler, whose"
                " `prediction_type` should be 'sample'."
            )

    def prepare(self, drawing: Drawing) -> None:
        pipeline = drawing.pipeline
        image = pipeline.image_processor.preprocess(self.image)
        image = image.to(drawing.device, drawing.dtype)
        if len(image) > 1:  # one per prompt, of which seeds may ask for several pictures
            image = image.repeat_interleave(int(drawing.request.num_images_per_prompt), 0)
        if image.shape[1] == getattr(pipeline.vae.config, "in_channels", 3):
            generator = drawing.request.generator
            rows = rows_to_encode(generator)
            image = stages.encode(
                pipeline.vae, image, generator, rows, drawing.device, drawing.dtype
            )
        channels = pipeline.vae.config.latent_channels
        check_channels(pipeline.unet, {"latents": channels, "image": image.shape[1]})
        self.small = nn.functional.interpolate(image, scale_factor=2, mode="nearest")
        shape = (drawing.pictures, channels, *self.small.shape[2:])
        if self.latents is not None and tuple(self.latents.shape) != shape:
            raise InputError(
                f"Unexpected latents shape, got {self.latents.shape}, expected {shape}"
            )
        factor = pipeline.vae_scale_factor
        drawing.size = (shape[2] * factor, shape[3] * factor)
        self.condition = _with_noise_waves(drawing.tensor("pooled_prompt_embeds"))
        self.levels = Levels.of(drawing.scheduler, drawing.timesteps)

    def around(self, drawing: Drawing, network: Network) -> Network:
        def preconditioned(x: Tensor, timestep: Tensor, context: Tensor, **inputs: Any) -> Tensor:
            alpha, sigma = self.levels.weights(float(timestep))
            answer = network(
                torch.cat([x, fit_rows(self.small, len(x))], dim=1),
                torch.tensor(math.log(sigma / alpha) / 4, device=x.device),
                context,
                timestep_cond=self.condition[-len(x) :],  # guided, the negative ones come first
                **inputs,
            )
            return alpha * x + sigma * answer[:, :-1]  # the last channel is a variance

        return preconditioned


def _with_noise_waves(pooled: Tensor) -> Tensor:
    """Pooled embeddings ``(n, width)`` behind the waves that stand for no noise."""
    ones, zeros = pooled.new_ones(len(pooled), _NOISE_WAVES), pooled.new_zeros(1, _NOISE_WAVES)
    return torch.cat([ones, zeros.expand(len(pooled), -1), pooled], dim=1)


class StableDiffusionLatentUpscalePipeline(StableDiffusionBase):
    """Draws twice as large, in few steps, from latents or pictures: sd-x2-latent-upscaler.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: see `StableDiffusionBase`; the scheduler's
            ``prediction_type`` is ``sample``.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = []
    _exclude_from_cpu_offload: ClassVar[list[str]] = []
    _callback_tensor_inputs: ClassVar[list[str]] = []
    _outdated_settings: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any
    ) -> None:
        self._set_up(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
        )
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor,
            resample="bicubic",
            vae_latent_channels=self.image_processor.config.vae_latent_channels,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: ImageInput | None = None,
        num_inference_steps: int = 75,
        guidance_scale: float = 9.0,
        negative_prompt: str | list[str] | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback: Callable[..., Any] | None = None,
        callback_steps: int = 1,
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Enlarge. What is not listed is as in `StableDiffusionPipeline.__call__`.

        Args:
            prompt: what is in the picture.
            image: pictures, or latents ``(n, 4, height, width)`` as `StableDiffusionPipeline`
                gives with ``output_type="latent"``; one, or one per prompt.
            guidance_scale: at 0 the prompt is left aside.
            latents: noise to start from, of twice the height and width of the small latents.
            pooled_prompt_embeds, negative_pooled_prompt_embeds: ``(n, width)``, beside embeddings
                in place of prompts.
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
            callback_steps,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
        )
        if request.prompt_syntax not in (None, "literal"):
            raise InputError("The latent upscaler reads its prompts literally.")
        channels = None if self.vae is None else self.vae.config.latent_channels
        pieces = SmallLatents(image, latents), FromNoise(latents=latents, channels=channels)
        return draw(self, request, *pieces)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the UNet is asked with the negative prompt as well."""
        return self.guidance_scale > 1

    def _embed(self, request: Request, device: torch.device) -> dict[str, Any]:
        prompt = [""] * request.prompts if request.guidance_scale == 0 else request.prompt
        guided = self.do_classifier_free_guidance
        positive, negative, pooled, negative_pooled = self.encode_prompt(
            prompt,
            device,
            guided,
            request.negative_prompt,
            request.prompt_embeds,
            request.negative_prompt_embeds,
            request.pooled_prompt_embeds,
            request.negative_pooled_prompt_embeds,
        )
        images = int(request.num_images_per_prompt)
        positive, pooled = (part.repeat_interleave(images, 0) for part in (positive, pooled))
        if guided and negative is not None and negative_pooled is not None:
            negative, negative_pooled = (
                part.repeat_interleave(images, 0) for part in (negative, negative_pooled)
            )
            pooled = self._join(pooled, negative_pooled)
            context = self._join(positive, negative)
        else:
            context = positive
        return {
            "network_dtype": positive.dtype,
            "context": context,
            "tensors": {"negative_prompt_embeds": negative, "pooled_prompt_embeds": pooled},
        }

    def _conditions(
        self,
        image: Any,
        image_embeds: Any,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> dict[str, Any]:
        if image is not None or image_embeds is not None:
            raise InputError("There are no IP-Adapters for the latent upscaler.")
        return {}

    def _to_output(self, *args: Any, **kwargs: Any) -> Any:
        return ImagePipelineOutput(super()._to_output(*args, **kwargs).images)

    # Under diffusers' names

    def encode_prompt(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompt: str | list[str] | None,
        device: torch.device | str,
        do_classifier_free_guidance: bool,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Embeddings and pooled embeddings.

        Returns:
            Embeddings ``(n, length, width)``, those of the negative prompts, and both pooled
            ``(n, width)``. Without guidance the negative ones are what was given.
        """
        encoding = TextEncoding(self.tokenizer, self.text_encoder, device)
        positive, pooled = prompt_embeds, pooled_prompt_embeds
        if positive is None or pooled is None:
            positive, pooled = encoding.with_pooled(prompt or "", warn=True)
        negative, negative_pooled = negative_prompt_embeds, negative_pooled_prompt_embeds
        if do_classifier_free_guidance and (negative is None or negative_pooled is None):
            texts = negative_texts(negative_prompt, prompt, len(positive))
            negative, negative_pooled = encoding.with_pooled(texts, length=positive.shape[1])
        return positive, negative, pooled, negative_pooled

    def check_inputs(
        self,
        prompt: Any,
        image: Any,
        callback_steps: Any,
        negative_prompt: Any = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        pooled_prompt_embeds: Any = None,
        negative_pooled_prompt_embeds: Any = None,
    ) -> None:
        """Raise `InputError` when arguments of a call are wrong or contradict each other."""
        checks.require_callback_steps(callback_steps)
        checks.check_call(
            self, prompt, callback_steps, negative_prompt, prompt_embeds, negative_prompt_embeds
        )
        for embeds, pooled, prefix in (
            (prompt_embeds, pooled_prompt_embeds, ""),
            (negative_prompt_embeds, negative_pooled_prompt_embeds, "negative_"),
        ):
            if embeds is not None and pooled is None:
                raise InputError(
                    f"If `{prefix}prompt_embeds` are provided, `{prefix}pooled_prompt_embeds` also"
                    f" have to be passed. Make sure to generate `{prefix}pooled_prompt_embeds` from"
                    " the same text encoder that was used to generate"
                    f" `{prefix}prompt_embeds`."
                )
        prompts = Request(prompt=prompt, prompt_embeds=prompt_embeds).prompts
        checks.check_pictures(image, prompts)

    prepare_latents = StableDiffusionUpscalePipeline.prepare_latents
