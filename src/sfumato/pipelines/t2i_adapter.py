"""Text to image with a T2I-Adapter: features of a picture in every down block of the UNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato.diffusion.noise import Generators
from sfumato.errors import InputError
from sfumato.models.t2i_adapter import MultiAdapter
from sfumato.pipelines import checks
from sfumato.pipelines.flow import Drawing, Network, Piece, draw, fit_rows
from sfumato.pipelines.output import StableDiffusionPipelineOutput
from sfumato.pipelines.request import Request
from sfumato.pipelines.stable_diffusion_base import StableDiffusionBase
from sfumato.pipelines.start import FromNoise, prepare_noise, size_of


class Adapted(Piece):
    """Features of pictures, computed once, for the UNet's down blocks in every step.

    Args:
        images: tensors in 0..1, one per adapter.
        scale: strength; a list for several adapters.
    """

    def __init__(self, images: list[Tensor], scale: float | Sequence[float]) -> None:
        self.images, self.scale = images, scale

    def prepare(self, drawing: Drawing) -> None:
        adapter = drawing.pipeline.adapter
        images = [image.to(drawing.device, adapter.dtype) for image in self.images]
        if hasattr(adapter, "adapters"):
            weights = self.scale if isinstance(self.scale, list | tuple) else None
            if weights is None:
                weights = [float(self.scale)] * len(images)  # pyright: ignore[reportArgumentType]
            self.features = adapter(images, list(weights))
        else:
            self.features = [features * self.scale for features in adapter(images[0])]

    def around(self, drawing: Drawing, network: Network) -> Network:
        def adapted(x: Tensor, timestep: Tensor, context: Any, **inputs: Any) -> Tensor:
            features = [fit_rows(own, len(x)) for own in self.features]
            return network(
                x, timestep, context, down_intrablock_additional_residuals=features, **inputs
            )

        return adapted


class StableDiffusionAdapterPipeline(StableDiffusionBase):
    """Text to image with T2I-Adapters (arXiv:2302.08453).

    Args:
        adapter: a `T2IAdapter`, a list of them, or a `MultiAdapter`.
        vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor,
            requires_safety_checker: see `StableDiffusionBase`.
    """

    model_cpu_offload_seq = "text_encoder->adapter->unet->vae"
    _optional_components: ClassVar[list[str]] = ["safety_checker", "feature_extractor"]
    _exclude_from_cpu_offload: ClassVar[list[str]] = []
    _outdated_settings: ClassVar[dict[str, Any]] = {}

    adapter: Any

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        adapter: Any,
        scheduler: Any,
        safety_checker: Any,
        feature_extractor: Any,
        requires_safety_checker: bool = True,
    ) -> None:
        self._set_up(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            adapter=MultiAdapter(adapter) if isinstance(adapter, list | tuple) else adapter,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
        )
        self._settle_safety(requires_safety_checker)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
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
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback: Callable[..., Any] | None = None,
        callback_steps: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        adapter_conditioning_scale: float | list[float] = 1.0,
        clip_skip: int | None = None,
        **kwargs: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Draw pictures. What is not listed is as in `StableDiffusionPipeline.__call__`.

        Args:
            image: the picture to go by, one for all or one per prompt, as PIL pictures or tensors
                in 0..1; for several adapters a list with those of each.
            height, width: of the pictures to draw; by default those of ``image``.
            callback: ``(step, timestep, latents)``.
            callback_steps: how often it is called.
            adapter_conditioning_scale: strength of the adapter; a list for several.
            kwargs: arguments that diffusers does not have, such as ``seeds`` and ``guidance``.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range or contradicts another.
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
            NumericalError: NaN or infinity appeared.
        """
        request = Request.read(self, locals())
        adapter = self._part("adapter", "drawing with an adapter")
        first = image[0] if isinstance(image, list) and hasattr(adapter, "adapters") else image
        rows, columns = size_of(self.image_processor, first, height, width)
        factor = adapter.downscale_factor
        rows, columns = (
            side if given is not None else side // factor * factor
            for side, given in ((rows, height), (columns, width))
        )
        self.check_inputs(
            prompt,
            rows,
            columns,
            callback_steps,
            image,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
        )
        images = image if hasattr(adapter, "adapters") else [image]
        tensors = [adapter_image(one, rows, columns) for one in images]
        start = FromNoise(rows, columns, latents)
        return draw(self, request, start, Adapted(tensors, adapter_conditioning_scale))

    def check_inputs(
        self,
        prompt: Any,
        height: Any,
        width: Any,
        callback_steps: Any,
        image: Any,
        negative_prompt: Any = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
    ) -> None:
        """Raise `InputError` when arguments of a call are wrong or contradict each other."""
        checks.image_size(height, width)
        checks.require_callback_steps(callback_steps)
        checks.check_call(
            self, prompt, callback_steps, negative_prompt, prompt_embeds, negative_prompt_embeds
        )
        if not hasattr(self.adapter, "adapters"):
            return
        if not isinstance(image, list):
            raise InputError(
                "MultiAdapter is enabled, but `image` is not a list. Please pass a list of images"
                " to `image`."
            )
        count = len(self.adapter.adapters)
        if len(image) != count:
            raise InputError(
                "MultiAdapter requires passing the same number of images as adapters. Given"
                f" {len(image)} images and {count} adapters."
            )

    prepare_latents = prepare_noise


def adapter_image(image: Any, height: int, width: int) -> Tensor:
    """Pictures for an adapter ``(n, channels, height, width)`` in 0..1; tensors stay as they are.

    PIL pictures keep their channels, since adapters for sketches and depths take one.
    """
    if isinstance(image, Tensor):
        return image if image.ndim == 4 else image[None]
    images = list(image) if isinstance(image, list | tuple) else [image]
    if images and all(isinstance(item, Tensor) for item in images):
        return torch.cat(images) if images[0].ndim == 4 else torch.stack(images)
    if not images or not all(isinstance(item, Image.Image) for item in images):
        raise InputError(f"`image` has to be PIL pictures or tensors but is {type(image)}.")
    size = (width, height)
    arrays = [np.asarray(item.resize(size, Image.Resampling.LANCZOS)) for item in images]
    batch = np.stack([a[..., None] if a.ndim == 2 else a for a in arrays])
    return torch.from_numpy(batch.astype(np.float32) / 255).permute(0, 3, 1, 2)
