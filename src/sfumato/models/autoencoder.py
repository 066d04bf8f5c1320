"""The KL autoencoder: images to latents and back.

The formulas are those of Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion
Models" (arXiv:2112.10752); configuration fields and weight names are diffusers'.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from sfumato.models.attention_model import AttentionModel
from sfumato.models.autoencoder_config import AutoencoderKLConfig as AutoencoderKLConfig
from sfumato.models.bands import rows_wrap
from sfumato.models.distributions import DiagonalGaussianDistribution, Generators
from sfumato.models.tiling import blend, run_tiled
from sfumato.models.vae_blocks import Decoder, Encoder
from sfumato.outputs import BaseOutput

logger = logging.getLogger(__name__)


@dataclass
class AutoencoderKLOutput(BaseOutput):
    """What `AutoencoderKL.encode` returns."""

    latent_dist: DiagonalGaussianDistribution


@dataclass
class DecoderOutput(BaseOutput):
    """What `AutoencoderKL.decode` returns: images ``(N, out_channels, H, W)`` around -1..1."""

    sample: Tensor


class AutoencoderKL(AttentionModel[AutoencoderKLConfig]):
    """A variational autoencoder with a Gaussian over its latents.

    Attributes:
        use_slicing: process the images of a batch one after the other.
        use_tiling: process large images in parts; see `enable_tiling`.
        tile_sample_min_size, tile_latent_min_size: size of a tile, in pixels of the image and of
            the latents; larger inputs are processed in parts.
        blend_tiles: the parts are tiles that overlap and are blended.
        tile_overlap_factor: the part of such a tile that it shares with the next.
    """

    config_class = AutoencoderKLConfig

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        c = self.config
        latent = c.latent_channels
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if c.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if c.use_post_quant_conv else None

        self.use_slicing = False
        self.use_tiling = self.blend_tiles = False
        size = c.sample_size[0] if isinstance(c.sample_size, tuple) else c.sample_size
        self.tile_sample_min_size = size
        self.tile_latent_min_size = size // 2 ** (len(c.block_out_channels) - 1)
        self.tile_overlap_factor = 0.25

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
        too_large = max(x.shape[-2:]) > self.tile_sample_min_size
        network = self._moments_in_parts if self.use_tiling and too_large else self._moments
        posterior = DiagonalGaussianDistribution(self._sliced(network, x))
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
        too_large = max(z.shape[-2:]) > self.tile_latent_min_size
        network = self._image_in_parts if self.use_tiling and too_large else self._image
        image = self._sliced(network, z)
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

    def enable_slicing(self) -> None:
        """Process the images of a batch one after the other, to save memory."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Process a batch at once (the default)."""
        self.use_slicing = False

    def enable_tiling(self, use_tiling: bool = True, *, blend: bool = False) -> None:
        """Process large images in parts, to need less memory.

        The parts are bands of rows whose layers see what lies around a band and share the
        statistics of the whole image, so the result is that of the whole image up to rounding,
        without seams. Memory is that of one feature map (512 bytes a pixel in float32, for the
        networks of Stable Diffusion) and a few bands with the pixels of an eighth of a tile.

        Args:
            use_tiling: False is `disable_tiling`.
            blend: take overlapping tiles that know nothing of each other, and blend them, as
                diffusers does. Colours differ from tile to tile, but the memory needed does not
                grow with the image.
        """
        self.use_tiling = use_tiling
        self.blend_tiles = blend

    def disable_tiling(self) -> None:
        """Process images whole (the default)."""
        self.use_tiling = False

    def tiled_encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """`encode` in parts, whatever the size of the images."""
        posterior = DiagonalGaussianDistribution(self._moments_in_parts(x))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """`decode` in parts, whatever the size of the latents."""
        image = self._image_in_parts(z)
        return DecoderOutput(image) if return_dict else (image,)

    def blend_v(self, a: Tensor, b: Tensor, blend_extent: int) -> Tensor:
        """``b`` with its upper rows faded in from the lower rows of ``a``."""
        return blend(a, b, blend_extent, dim=2)

    def blend_h(self, a: Tensor, b: Tensor, blend_extent: int) -> Tensor:
        """``b`` with its left columns faded in from the right columns of ``a``."""
        return blend(a, b, blend_extent, dim=3)

    def _moments(self, x: Tensor, band_pixels: int | None = None) -> Tensor:
        h = self.encoder(x, band_pixels)
        return h if self.quant_conv is None else self.quant_conv(h)

    def _image(self, z: Tensor, band_pixels: int | None = None) -> Tensor:
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z, band_pixels)

    def _moments_in_parts(self, x: Tensor) -> Tensor:
        if not self.blend_tiles:
            return self._moments(x, self._band_pixels())
        return self._tiled(self._moments, x, self.tile_sample_min_size, self.tile_latent_min_size)

    def _image_in_parts(self, z: Tensor) -> Tensor:
        if not self.blend_tiles:
            return self._image(z, self._band_pixels())
        return self._tiled(self._image, z, self.tile_latent_min_size, self.tile_sample_min_size)

    def _band_pixels(self) -> int | None:
        if rows_wrap():
            logger.warning("VAE tiling is left out: the picture's upper and lower edges join.")
            return None
        return self.tile_sample_min_size**2 // 8

    def _tiled(
        self, network: Callable[[Tensor], Tensor], x: Tensor, tile: int, out_tile: int
    ) -> Tensor:
        extent = int(out_tile * self.tile_overlap_factor)
        stride = int(tile * (1 - self.tile_overlap_factor))
        return run_tiled(
            network, x, tile=tile, stride=stride, extent=extent, limit=out_tile - extent
        )

    def _sliced(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.use_slicing and x.shape[0] > 1:
            return torch.cat([network(part) for part in x.split(1)])
        return network(x)
