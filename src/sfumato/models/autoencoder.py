"""The KL autoencoder: images to latents and back.

The formulas are those of Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion
Models" (arXiv:2112.10752); configuration fields and weight names are diffusers'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from sfumato.models.autoencoder_config import AutoencoderKLConfig as AutoencoderKLConfig
from sfumato.models.distributions import DiagonalGaussianDistribution, Generators
from sfumato.models.first_stage import FirstStage
from sfumato.models.vae_blocks import Decoder, Encoder
from sfumato.outputs import BaseOutput


@dataclass
class AutoencoderKLOutput(BaseOutput):
    """What `AutoencoderKL.encode` returns."""

    latent_dist: DiagonalGaussianDistribution


@dataclass
class DecoderOutput(BaseOutput):
    """Images ``(N, out_channels, H, W)`` around -1..1.

    Attributes:
        commit_loss: of a `VQModel`; see `VectorQuantizer`.
    """

    sample: Tensor
    commit_loss: Tensor | None = None


class AutoencoderKL(FirstStage[AutoencoderKLConfig]):
    """A variational autoencoder with a Gaussian over its latents.

    For slicing and tiling see `FirstStage`.
    """

    config_class = AutoencoderKLConfig

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        c = self.config
        latent = c.latent_channels
        self.encoder = Encoder(c, 2 * latent)
        self.decoder = Decoder(c)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if c.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if c.use_post_quant_conv else None
        self._begin_whole(c.sample_size, len(c.block_out_channels))

    @overload
    def encode(self, x: Tensor, return_dict: Literal[True] = True) -> AutoencoderKLOutput: ...

    @overload
    def encode(
        self, x: Tensor, return_dict: bool
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]: ...

    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """The distribution of latents of images ``(N, in_channels, H, W)`` in -1..1."""
        posterior = DiagonalGaussianDistribution(self._encoded(x))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    @overload
    def decode(
        self,
        z: Tensor,
        return_dict: Literal[True] = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput: ...

    @overload
    def decode(
        self, z: Tensor, return_dict: bool, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]: ...

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """The images of latents ``(N, latent_channels, h, w)``.

        ``generator`` is accepted because other autoencoders draw noise here; this one does not.
        """
        image = self._decoded(z)
        return DecoderOutput(image) if return_dict else (image,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generators = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode images; the latents are the mean, or drawn if ``sample_posterior``."""
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict=return_dict)

    def tiled_encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """`encode` in parts, whatever the size of the images."""
        posterior = DiagonalGaussianDistribution(self._encoded_in_parts(x))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """`decode` in parts, whatever the size of the latents."""
        image = self._decoded_in_parts(z)
        return DecoderOutput(image) if return_dict else (image,)
