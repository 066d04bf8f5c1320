"""Depth to image: image to image with a UNet that sees how far away everything is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sfumato.diffusion.noise import Generators
from sfumato.errors import InputError
from sfumato.pipelines import checks
from sfumato.pipelines.flow import ChannelPiece, Drawing, check_channels, draw, fit_rows
from sfumato.pipelines.image_processor import ImageInput
from sfumato.pipelines.output import ImagePipelineOutput
from sfumato.pipelines.request import Request
from sfumato.pipelines.stable_diffusion_base import StableDiffusionBase
from sfumato.pipelines.start import FromImage, prepare_latents


class Depth(ChannelPiece):
    """A map of depths as a further channel, at the size of the latents that are there by then.

    Args:
        image: pictures, for the estimator.
        depth_map: depths ``(n, height, width)`` in any unit; None has them estimated.
    """

    channels = ("depth_mask",)

    def __init__(self, image: Any, depth_map: Tensor | None) -> None:
        self.image, self.depth_map = image, depth_map

    def prepare(self, drawing: Drawing) -> None:
        pipeline, x = drawing.pipeline, drawing.x
        assert x is not None
        check_channels(pipeline.unet, {"latents": x.shape[1], "depth": 1})
        depth = self.depth_map
        if depth is None:
            depth = estimated_depth(pipeline, self.image, drawing.device)
        drawing.tensors["depth_mask"] = depth_channel(
            depth.to(drawing.device, drawing.dtype),
            (x.shape[2], x.shape[3]),
            drawing.pictures,
            drawing.guided,
        )


def estimated_depth(pipeline: Any, image: Any, device: torch.device | str) -> Tensor:
    """Depths of pictures, from the pipeline's estimator."""
    estimator, extractor = pipeline.depth_estimator, pipeline.feature_extractor
    if estimator is None or extractor is None:
        raise InputError(
            "There is no `depth_map`, and the pipeline has no depth estimator to make one.",
            hint="Pass `depth_map=`, or load `depth_estimator` and `feature_extractor` with"
            " transformers and hand them to the pipeline.",
        )
    images = list(image) if isinstance(image, list | tuple | Tensor) else [image]
    pixels = extractor(images=images, return_tensors="pt").pixel_values
    return estimator(pixels.to(device, estimator.dtype)).predicted_depth


def depth_channel(depth: Tensor, size: tuple[int, int], count: int, guided: bool) -> Tensor:
    """Depths as a channel of latents: scaled to ``size``, and each map to -1..1."""
    if depth.ndim != 3:
        raise InputError(
            f"`depth_map` has to be a tensor (n, height, width) but has the shape"
            f" {tuple(depth.shape)}."
        )
    scaled = nn.functional.interpolate(
        depth.unsqueeze(1), size=size, mode="bicubic", align_corners=False
    )
    low, high = scaled.amin((1, 2, 3), keepdim=True), scaled.amax((1, 2, 3), keepdim=True)
    span = (high - low).clamp(min=torch.finfo(scaled.dtype).tiny)  # a flat map stays flat
    channel = fit_rows(2 * (scaled - low) / span - 1, count)
    return torch.cat([channel, channel]) if guided else channel


class StableDiffusionDepth2ImgPipeline(StableDiffusionBase):
    """Changes a picture after a prompt and keeps its depths, with a model trained for it.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: see `StableDiffusionBase`.
        depth_estimator: ``(pixels) -> output`` with ``predicted_depth``, such as transformers'
            ``DPTForDepthEstimation``; None when depths are given with each call.
        feature_extractor: makes the estimator's pixels; None likewise.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = ["depth_estimator", "feature_extractor"]
    _exclude_from_cpu_offload: ClassVar[list[str]] = []
    _callback_tensor_inputs: ClassVar[list[str]] = [
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "depth_mask",
    ]
    _outdated_settings: ClassVar[dict[str, Any]] = {}

    depth_estimator: Any

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        depth_estimator: Any,
        feature_extractor: Any,
    ) -> None:
        self._set_up(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            depth_estimator=depth_estimator,
            feature_extractor=feature_extractor,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: ImageInput | None = None,
        depth_map: Tensor | None = None,
        strength: float = 0.8,
        num_inference_steps: int | None = 50,
        guidance_scale: float | None = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float | None = 0.0,
        generator: Generators = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Change pictures. What is not listed is as in `StableDiffusionImg2ImgPipeline.__call__`.

        Args:
            depth_map: depths ``(n, height, width)`` of the pictures, in any unit; by default they
                are estimated.
            callback_on_step_end_tensor_inputs: may also name ``depth_mask``.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range or contradicts another, or
                there are neither depths nor an estimator.
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
            NumericalError: NaN or infinity appeared.
        """
        request = Request.read(self, locals())
        self.check_inputs(
            prompt,
            strength,
            request.callback_steps,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            request.callback_on_step_end_tensor_inputs,
        )
        if image is None:
            raise InputError("`image` input cannot be undefined.")
        pieces = FromImage(image), Depth(image, depth_map)
        return draw(self, request, *pieces, strength=strength)

    def _to_output(self, *args: Any, **kwargs: Any) -> Any:
        return ImagePipelineOutput(super()._to_output(*args, **kwargs).images)

    def check_inputs(
        self,
        prompt: Any,
        strength: Any,
        callback_steps: Any,
        negative_prompt: Any = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
    ) -> None:
        """Raise `InputError` when arguments of a call are wrong or contradict each other."""
        checks.check_strength(strength)
        checks.check_call(
            self,
            prompt,
            callback_steps,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            tensor_inputs=callback_on_step_end_tensor_inputs,
        )

    prepare_latents = prepare_latents
