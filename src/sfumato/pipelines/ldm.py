"""Pictures of nothing in particular: the paper's unconditional models, in diffusers' form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sfumato.diffusion.noise import Generators
from sfumato.pipelines.flow import draw
from sfumato.pipelines.latent_diffusion import LatentRequest, VqvaePipeline
from sfumato.pipelines.output import ImagePipelineOutput
from sfumato.pipelines.start import FromNoise


class LDMPipeline(VqvaePipeline):
    """Draws with an unconditional latent diffusion model.

    Args:
        vqvae: the first stage, `VQModel` or `AutoencoderKL`.
        unet: `UNet2DModel`.
        scheduler: which noise levels to pass through, and how.
    """

    _made_for: ClassVar[tuple[str, ...]] = ("LDMPipeline",)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        output_type: str | None = "pil",
        return_dict: bool = True,
        *,
        height: int | None = None,
        width: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        latents: Tensor | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw. What is not listed is as in `StableDiffusionPipeline.__call__`.

        Args:
            batch_size: how many pictures.
            generator: also of the noise that ``eta`` adds, which diffusers draws from the global
                generator.
            height, width: in pixels, by default as the network was trained; larger pictures are
                drawn by convolution.
            latents: the noise to start from, ``(batch_size, channels, h, w)``.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range or contradicts another.
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
            NumericalError: NaN or infinity appeared.
        """
        request = LatentRequest.read(self, locals())
        return draw(self, request, FromNoise(*self._size(height, width), latents))
