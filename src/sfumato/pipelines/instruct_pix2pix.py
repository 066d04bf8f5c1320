"""Editing by instruction: a UNet that sees the picture to edit beside the noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sfumato.diffusion.guidance import ClassifierFree, Guidance, Network
from sfumato.diffusion.guidance_parts import CFGPlusPlus, as_parts
from sfumato.diffusion.noise import Generators
from sfumato.errors import InputError
from sfumato.pipelines import checks, stages
from sfumato.pipelines.call import OfCall
from sfumato.pipelines.flow import ChannelPiece, Drawing, check_channels, draw, fit_rows
from sfumato.pipelines.image_processor import ImageInput
from sfumato.pipelines.output import StableDiffusionPipelineOutput
from sfumato.pipelines.request import Request
from sfumato.pipelines.stable_diffusion_base import StableDiffusionBase
from sfumato.pipelines.start import (
    FromNoise,
    are_latents,
    as_rgb,
    check_sharing,
    prepare_noise,
)


class EditAnswer(NamedTuple):
    """What the network says of text and picture, of the picture alone, and of neither."""

    negative: Tensor | None
    positive: Tensor
    image: Tensor


@dataclass(frozen=True)
class EditGuidance(ClassifierFree):
    """Guidance by text and picture (InstructPix2Pix, arXiv:2211.09800, equation 3).

    The context holds the text, then twice the negative text; the picture goes with the first two.
    The answer without either is the negative one, and ``scale`` how closely to follow the text.

    Attributes:
        image: how closely to keep to the picture.
    """

    image: float = 1.5

    separable: ClassVar[bool] = False
    takes_parts: ClassVar[bool] = False
    negative_block: ClassVar[int] = 2
    positive_block: ClassVar[int] = 0

    def ask(self, network: Network, x: Tensor, timestep: Tensor, context: Any) -> Any:
        both, image, neither = network(torch.cat([x] * 3), timestep, context).chunk(3)
        return EditAnswer(neither, both, image)

    def guided(self, answer: Any, scale: float | Sequence[float]) -> Tensor:
        if answer.negative is None:
            return answer.positive
        by_text = self._scale_like(answer.positive, scale) * (answer.positive - answer.image)
        return answer.negative + by_text + self.image * (answer.image - answer.negative)


class Edited(ChannelPiece):
    """Noise of the size of a picture, and the picture's latents as further channels.

    Args:
        image: pictures to edit, or latents of them.
        latents: the noise, in place of a random draw.
    """

    channels = ("image_latents",)

    def __init__(self, image: Any, latents: Tensor | None) -> None:
        self.image, self.latents = as_rgb(image), latents

    def check(self, pipeline: Any, request: Request) -> None:
        if any(isinstance(part, CFGPlusPlus) for part in as_parts(request.guidance)):
            raise InputError(
                "CFGPlusPlus chooses the scale, of which this pipeline has two.",
                hint="Samplers of CFG++ work here, such as euler_cfg_pp.",
            )

    def prepare(self, drawing: Drawing) -> None:
        pipeline = drawing.pipeline
        image = pipeline.image_processor.preprocess(self.image).to(drawing.device)
        latents = edited_latents(
            pipeline.vae, image, drawing.pictures, drawing.dtype, drawing.guided
        )
        drawing.tensors["image_latents"] = latents
        channels = pipeline.vae.config.latent_channels
        check_channels(pipeline.unet, {"latents": channels, "image": latents.shape[1]})
        factor = pipeline.vae_scale_factor
        height, width = (side * factor for side in latents.shape[2:])
        FromNoise(height, width, self.latents, channels).prepare(drawing)


def edited_latents(vae: Any, image: Tensor, count: int, dtype: torch.dtype, guided: bool) -> Tensor:
    """A preprocessed picture as channels, ``count`` times; in guidance twice, and once blank."""
    latents = image.to(dtype) if are_latents(image, vae) else stages.most_likely(vae, image, dtype)
    check_sharing(len(latents), count)
    latents = fit_rows(latents, count)
    return torch.cat([latents, latents, torch.zeros_like(latents)]) if guided else latents


class StableDiffusionInstructPix2PixPipeline(StableDiffusionBase):
    """Edits a picture as an instruction says, with a model that was trained for it.

    For the components see `StableDiffusionBase`.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds", "image_latents"]
    _outdated_settings: ClassVar[dict[str, Any]] = {}

    image_guidance_scale, _image_guidance_scale = OfCall(), OfCall()

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the UNet is also asked without the instruction and without the picture."""
        return self.guidance_scale > 1 and self.image_guidance_scale >= 1

    def _guidance(self) -> Guidance | None:
        if not self.do_classifier_free_guidance:
            return None
        return EditGuidance(self.guidance_scale, image=self.image_guidance_scale)

    def _join(self, positive: Tensor, negative: Tensor) -> Tensor:
        return torch.cat([positive, negative, negative])

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: ImageInput | None = None,
        num_inference_steps: int = 100,
        guidance_scale: float = 7.5,
        image_guidance_scale: float = 1.5,
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
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        cross_attention_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Edit pictures. What is not listed is as in `StableDiffusionPipeline.__call__`.

        Args:
            prompt: what to do, such as ``"make it winter"``.
            image: one picture for all, or one per prompt; or latents of them. Its size is that of
                the result, cut to a multiple of 8.
            guidance_scale: how closely to follow the instruction.
            image_guidance_scale: how closely to keep to the picture; below 1, or with a
                ``guidance_scale`` of 1 or less, there is no guidance at all.
            callback_on_step_end_tensor_inputs: may also name ``image_latents``.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range or contradicts another, or
                the UNet was not trained for this.
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
            NumericalError: NaN or infinity appeared.
        """
        request = Request.read(self, locals())
        self.check_inputs(
            prompt,
            request.callback_steps,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            ip_adapter_image,
            ip_adapter_image_embeds,
            request.callback_on_step_end_tensor_inputs,
        )
        if image is None:
            raise InputError("`image` input cannot be undefined.")
        return draw(self, request, Edited(image, latents))

    def check_inputs(
        self,
        prompt: Any,
        callback_steps: Any,
        negative_prompt: Any = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
    ) -> None:
        """Raise `InputError` when arguments of a call are wrong or contradict each other."""
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

    def prepare_image_latents(
        self,
        image: Tensor,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: torch.dtype,
        device: torch.device | str,
        do_classifier_free_guidance: bool,
        generator: Generators = None,
    ) -> Tensor:
        """The picture as channels for the UNet; nothing is drawn from ``generator``."""
        count = batch_size * num_images_per_prompt
        return edited_latents(self.vae, image.to(device), count, dtype, do_classifier_free_guidance)

    prepare_latents = prepare_noise
