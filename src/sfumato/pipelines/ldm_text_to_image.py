"""Text to image with the paper's own model of 1.45 billion parameters.

A BERT-like transformer that was trained with the UNet reads the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sfumato.conditioners.text import TextReader
from sfumato.diffusion.guidance import ClassifierFree, Guidance
from sfumato.diffusion.noise import Generators
from sfumato.pipelines import checks
from sfumato.pipelines.flow import draw
from sfumato.pipelines.latent_diffusion import Conditioned, LatentRequest, VqvaePipeline
from sfumato.pipelines.output import ImagePipelineOutput
from sfumato.pipelines.start import FromNoise

#: Pixels of a latent of the published model, which diffusers counts with for every model.
_PIXELS = 8


class _AnyScale(ClassifierFree):
    """Guidance at scales below 1 too, towards the negative text, as diffusers has it here."""

    @property
    def doubles(self) -> bool:
        return self.scale != 1


class LDMTextToImagePipeline(VqvaePipeline):
    """Draws pictures of texts.

    Args:
        vqvae: the first stage, `AutoencoderKL` or `VQModel`.
        bert: reads the text, `LDMBertModel`.
        tokenizer: `BertTokenizer`.
        unet: `UNet2DConditionModel`.
        scheduler: which noise levels to pass through, and how.
    """

    model_cpu_offload_seq = "bert->unet->vqvae"
    _made_for: ClassVar[tuple[str, ...]] = ("LDMTextToImagePipeline",)

    bert: Any
    tokenizer: Any

    def __init__(self, vqvae: Any, bert: Any, tokenizer: Any, unet: Any, scheduler: Any) -> None:
        self._set_up(
            vqvae, vqvae=vqvae, bert=bert, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )

    @property
    def conditioner(self) -> Any:
        """The text encoder, under the name that other pipelines have for what tells the UNet."""
        return self.bert

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the network is asked about the negative text as well."""
        return self.guidance_scale != 1

    def _guidance(self) -> Guidance | None:
        if not self.do_classifier_free_guidance:
            return None
        return _AnyScale(self.guidance_scale, self.guidance_rescale)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        *,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw. What is not listed is as in `StableDiffusionPipeline.__call__`.

        Args:
            prompt: one text, or several.
            height, width: in pixels, by default as the network was trained (256); larger pictures
                are drawn by convolution.
            guidance_scale: above 1, go further towards the text than the network says; 1 asks it
                once.
            negative_prompt: what to go away from, by default the empty text.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range or contradicts another.
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
            NumericalError: NaN or infinity appeared.
        """
        reader = TextReader(self.bert, self.tokenizer)
        arguments = {**locals(), "batch_size": reader.count(prompt)}
        request = LatentRequest.read(self, arguments)
        for name in ("bert", "tokenizer"):
            self._part(name, "drawing")
        noise = FromNoise(*self._size(height, width), latents)
        return draw(self, request, Conditioned(reader, prompt, negative_prompt), noise)

    def _size(self, height: Any, width: Any) -> tuple[int, int]:
        """The size in pixels of the first stage.

        diffusers counts eight pixels for a latent of any `AutoencoderKL`; so do we, although one
        of other depth then draws another size. A `VQModel` is asked how many it has.
        """
        if hasattr(self.vqvae, "quantize"):
            return super()._size(height, width)
        sample, factor = self._part("unet", "drawing").config.sample_size, self.vae_scale_factor
        height = sample * factor if height is None else height
        width = sample * factor if width is None else width
        height, width = checks.image_size(height, width)
        return height // _PIXELS * factor, width // _PIXELS * factor
