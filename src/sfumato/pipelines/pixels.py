"""Diffusion in pixels, without a first stage: DDPM (arXiv:2006.11239) and DDIM (2010.02502)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sfumato.diffusion.foreign import SchedulerRun, accepted_options
from sfumato.diffusion.noise import Generators
from sfumato.diffusion.run import Solver
from sfumato.models.autoencoder import DecoderOutput
from sfumato.pipelines.flow import Drawing, Piece, draw
from sfumato.pipelines.latent_diffusion import LatentDiffusionBase, LatentRequest
from sfumato.pipelines.output import ImagePipelineOutput
from sfumato.pipelines.start import FromNoise
from sfumato.schedulers import DDIMScheduler


@dataclass(frozen=True)
class Pixels:
    """The first stage of models that need none: pictures are their own latents."""

    dtype = torch.float32
    config = SimpleNamespace(block_out_channels=(1,), scaling_factor=1.0)

    def decode(self, z: Tensor) -> DecoderOutput:
        """``z`` itself."""
        return DecoderOutput(z)


class StepOptions(Piece):
    """Further arguments of a scheduler's ``step``, where it has them and they are given."""

    def __init__(self, **options: Any) -> None:
        self.options = {name: value for name, value in options.items() if value is not None}

    def solver(self, drawing: Drawing, solver: Solver) -> Solver:
        if isinstance(solver, SchedulerRun):
            solver.options |= accepted_options(solver.scheduler.step, self.options)
        return solver


class DDPMPipeline(LatentDiffusionBase):
    """Draws with an unconditional model of pixels.

    Args:
        unet: `UNet2DModel`.
        scheduler: which noise levels to pass through, and how.
    """

    model_cpu_offload_seq = "unet"

    vae = Pixels()

    def __init__(self, unet: Any, scheduler: Any) -> None:
        self._set_up(self.vae, unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        num_inference_steps: int = 1000,
        output_type: str | None = "pil",
        return_dict: bool = True,
        *,
        height: int | None = None,
        width: int | None = None,
        timesteps: Sequence[int] | None = None,
        latents: Tensor | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw. What is not listed is as in `LDMPipeline.__call__`.

        Args:
            latents: the noise to start from, ``(batch_size, channels, height, width)``.
        """
        request = LatentRequest.read(self, locals())
        return draw(self, request, FromNoise(*self._size(height, width), latents))


class DDIMPipeline(LatentDiffusionBase):
    """Draws with an unconditional model of pixels in few steps.

    Args:
        unet: `UNet2DModel`.
        scheduler: its noise schedule is used, in a `DDIMScheduler`.
    """

    model_cpu_offload_seq = "unet"

    vae = Pixels()

    def __init__(self, unet: Any, scheduler: Any) -> None:
        scheduler = DDIMScheduler.from_config(scheduler.config)
        self._set_up(self.vae, unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        use_clipped_model_output: bool | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        *,
        height: int | None = None,
        width: int | None = None,
        latents: Tensor | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw. What is not listed is as in `LDMPipeline.__call__`.

        Args:
            use_clipped_model_output: see `DDIMScheduler.step`.
            latents: the noise to start from, ``(batch_size, channels, height, width)``.
        """
        request = LatentRequest.read(self, locals())
        noise = FromNoise(*self._size(height, width), latents)
        options = StepOptions(use_clipped_model_output=use_clipped_model_output)
        return draw(self, request, noise, options)
