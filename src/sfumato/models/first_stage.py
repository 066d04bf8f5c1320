"""What first stages share: the two halves, run whole, image by image, or in parts.

A first stage is an autoencoder between pictures and latents. Diffusion models draw in its latents;
there is one with a Gaussian over them (`AutoencoderKL`) and one with a codebook (`VQModel`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sfumato.models.attention_model import AttentionModel
from sfumato.models.bands import rows_wrap
from sfumato.models.base import ConfigT
from sfumato.models.tiling import blend, run_tiled
from sfumato.models.vae_blocks import Decoder, Encoder
from sfumato.runtime import kernels

logger = logging.getLogger(__name__)


class FirstStage(AttentionModel[ConfigT]):
    """An encoder and a decoder, with a convolution between each and the latents.

    Attributes:
        use_slicing: process the images of a batch one after the other.
        use_tiling: process large images in parts; see `enable_tiling`.
        tile_sample_min_size, tile_latent_min_size: size of a tile, in pixels of the image and of
            the latents; larger inputs are processed in parts.
        blend_tiles: the parts are tiles that overlap and are blended.
        tile_overlap_factor: the part of such a tile that it shares with the next.
    """

    encoder: Encoder
    decoder: Decoder
    quant_conv: nn.Conv2d | None
    post_quant_conv: nn.Conv2d | None

    def _begin_whole(self, sample_size: int | tuple[int, ...], stages: int) -> None:
        """Set the switches; tiles are of the size of training."""
        self.use_slicing = False
        self.use_tiling = self.blend_tiles = False
        size = sample_size[0] if isinstance(sample_size, tuple) else sample_size
        self.tile_sample_min_size = size
        self.tile_latent_min_size = size // 2 ** (stages - 1)
        self.tile_overlap_factor = 0.25

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
        without seams. Memory is that of a few bands with the pixels of an eighth of a tile, and
        of 64 MiB of bands that wait for each other; what is beyond waits in a temporary file
        (`sfumato.runtime.spill`).

        Args:
            use_tiling: False is `disable_tiling`.
            blend: take overlapping tiles that know nothing of each other, and blend them, as
                diffusers does. Colours differ from tile to tile.
        """
        self.use_tiling = use_tiling
        self.blend_tiles = blend

    def disable_tiling(self) -> None:
        """Process images whole (the default)."""
        self.use_tiling = False

    def blend_v(self, a: Tensor, b: Tensor, blend_extent: int) -> Tensor:
        """``b`` with its upper rows faded in from the lower rows of ``a``."""
        return blend(a, b, blend_extent, dim=2)

    def blend_h(self, a: Tensor, b: Tensor, blend_extent: int) -> Tensor:
        """``b`` with its left columns faded in from the right columns of ``a``."""
        return blend(a, b, blend_extent, dim=3)

    def _encoded(self, x: Tensor) -> Tensor:
        """What the encoder makes of images, whole or in parts as the switches say."""
        too_large = max(x.shape[-2:]) > self.tile_sample_min_size
        whole = not (self.use_tiling and too_large)
        return self._sliced(self._encoded_whole if whole else self._encoded_in_parts, x)

    def _decoded(self, z: Tensor) -> Tensor:
        """The images of latents, whole or in parts as the switches say."""
        too_large = max(z.shape[-2:]) > self.tile_latent_min_size
        whole = not (self.use_tiling and too_large)
        return self._sliced(self._decoded_whole if whole else self._decoded_in_parts, z)

    def _encoded_whole(self, x: Tensor, band_pixels: int | None = None) -> Tensor:
        if self.engine is not None and band_pixels is None:
            answer = self.engine.call("encode", (x,), {})
            if answer is not None:
                return answer
        with kernels.active():
            h = self.encoder(x, band_pixels)
            return h if self.quant_conv is None else self.quant_conv(h)

    def _decoded_whole(self, z: Tensor, band_pixels: int | None = None) -> Tensor:
        if self.engine is not None and band_pixels is None:
            answer = self.engine.call("decode", (z,), {})
            if answer is not None:
                return answer
        with kernels.active():
            if self.post_quant_conv is not None:
                z = self.post_quant_conv(z)
            return self.decoder(z, band_pixels)

    def _encoded_in_parts(self, x: Tensor) -> Tensor:
        if not self.blend_tiles:
            return self._encoded_whole(x, self._band_pixels())
        return self._tiled(
            self._encoded_whole, x, self.tile_sample_min_size, self.tile_latent_min_size
        )

    def _decoded_in_parts(self, z: Tensor) -> Tensor:
        if not self.blend_tiles:
            return self._decoded_whole(z, self._band_pixels())
        return self._tiled(
            self._decoded_whole, z, self.tile_latent_min_size, self.tile_sample_min_size
        )

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
