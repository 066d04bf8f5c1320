"""Where latents begin: as noise, or as a given picture with noise on top."""

from __future__ import annotations

from torch import Tensor

from sfumato.pipelines import checks, stages
from sfumato.pipelines.flow import Drawing, Piece


class FromNoise(Piece):
    """Latents that begin as noise: text to image.

    Args:
        height, width: of the pictures in pixels.
        latents: the noise itself, in place of a random draw.
        channels: of the latents; by default as many as the UNet takes.
    """

    def __init__(
        self, height: int, width: int, latents: Tensor | None = None, channels: int | None = None
    ) -> None:
        self.height, self.width, self.latents, self.channels = height, width, latents, channels

    def prepare(self, drawing: Drawing) -> None:
        pipeline, request = drawing.pipeline, drawing.request
        factor = pipeline.vae_scale_factor
        channels = pipeline.unet.config.in_channels if self.channels is None else self.channels
        shape = (drawing.pictures, channels, self.height // factor, self.width // factor)
        checks.check_latents(self.latents, shape)
        drawing.x = stages.prepare_latents(
            drawing.scheduler,
            shape,
            drawing.dtype,
            drawing.device,
            request.generator,
            self.latents,
        )
