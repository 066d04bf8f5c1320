"""The tiny autoencoder (TAESD by Ollin Boer Bohan): latents to pictures in a fraction of the time.

It takes the place of `AutoencoderKL` in a pipeline, for previews and quick drafts. It has no
Gaussian: `encode` gives the latents themselves, already at the scale that the UNet works at.
Configuration fields and weight names are those of diffusers' ``AutoencoderTiny``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor, nn

from sfumato.config import Config, check_choice
from sfumato.errors import ConfigError
from sfumato.models import checks
from sfumato.models.autoencoder import DecoderOutput
from sfumato.models.base import ModelMixin
from sfumato.models.conventions import ACTIVATION_KINDS
from sfumato.models.layers import Recomputable, get_activation
from sfumato.outputs import BaseOutput
from sfumato.runtime import kernels

UPSAMPLING = ("nearest", "nearest-exact", "bilinear", "bicubic")


@dataclass(frozen=True, kw_only=True)
class AutoencoderTinyConfig(Config):
    """Fields and defaults of diffusers' ``AutoencoderTiny``.

    Attributes:
        num_encoder_blocks, num_decoder_blocks: residual blocks per resolution. All channel counts
            of one half are equal: the layers between its resolutions do not change them.
        latent_magnitude, latent_shift: how latents are packed into the range 0..1.
        scaling_factor, shift_factor: describe the latents to the pipelines; the network itself
            does not apply them.
        force_upcast: always false; this network is safe in 16 bits.
    """

    #: What diffusers writes in addition; see `block_out_channels`.
    ignored_keys: ClassVar[frozenset[str]] = frozenset({"block_out_channels"})

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    act_fn: str = "relu"
    upsample_fn: str = "nearest"
    latent_channels: int = 4
    upsampling_scaling_factor: int = 2
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_magnitude: float = 3
    latent_shift: float = 0.5
    force_upcast: bool = False
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        """The decoder's, under the name by which pipelines count the resolutions."""
        return self.decoder_block_out_channels

    def validate(self) -> None:
        checks.check_ints(self, ("in_channels", "out_channels", "latent_channels"), 1, 1024)
        checks.check_ints(self, ("upsampling_scaling_factor",), 1, 16)
        for half in ("encoder", "decoder"):
            self._validate_half(f"{half}_block_out_channels", f"num_{half}_blocks")
        check_choice(checks.label(self, "act_fn"), self.act_fn, tuple(ACTIVATION_KINDS))
        check_choice(checks.label(self, "upsample_fn"), self.upsample_fn, UPSAMPLING)
        for name in ("latent_magnitude", "scaling_factor"):
            checks.check_number(self, name, 1e-6, 1e6)
        for name in ("latent_shift", "shift_factor"):
            checks.check_number(self, name, -1e6, 1e6)
        checks.check_flags(self, ("force_upcast",))

    def _validate_half(self, channels: str, blocks: str) -> None:
        checks.check_channels(self, channels, None)
        if len(set(self[channels])) > 1:
            raise ConfigError(
                f"`{checks.label(self, channels)}` has to hold equal numbers but is "
                f"{list(self[channels])}."
            )
        checks.check_tuple(self, blocks)
        if len(self[blocks]) != len(self[channels]):
            raise ConfigError(f"`{channels}` should have the same length as `{blocks}`.")
        for count in self[blocks]:
            if not isinstance(count, int) or not 0 <= count <= checks.MAX_LAYERS:
                raise ConfigError(
                    f"`{checks.label(self, blocks)}` has to hold integers from 0 to "
                    f"{checks.MAX_LAYERS} but holds {count!r:.40}."
                )
        checks.check_size(self, 27 * self[channels][0] ** 2 * sum(self[blocks]))

    def to_dict(self) -> dict[str, Any]:
        """As `Config.to_dict`, with the key that diffusers adds."""
        return {**super().to_dict(), "block_out_channels": list(self.block_out_channels)}


@dataclass
class AutoencoderTinyOutput(BaseOutput):
    """What `AutoencoderTiny.encode` returns: latents ``(N, latent_channels, h, w)``."""

    latents: Tensor


class AutoencoderTinyBlock(Recomputable):
    """Three 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int, act_fn: str) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            get_activation(act_fn),
            nn.Conv2d(channels, channels, 3, padding=1),
            get_activation(act_fn),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def compute(self, x: Tensor) -> Tensor:
        """``x`` is ``(N, channels, H, W)``."""
        return torch.relu(self.conv(x) + x)


class EncoderTiny(nn.Module):
    """Pictures around -1..1 to latents; every resolution after the first is half of the last."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        width = config.encoder_block_out_channels[0]
        layers: list[nn.Module] = []
        for i, count in enumerate(config.num_encoder_blocks):
            if i == 0:
                layers.append(nn.Conv2d(config.in_channels, width, 3, padding=1))
            else:
                layers.append(nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False))
            layers += [AutoencoderTinyBlock(width, config.act_fn) for _ in range(count)]
        layers.append(nn.Conv2d(width, config.latent_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x + 1) / 2)


class DecoderTiny(nn.Module):
    """Latents to pictures around -1..1."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        width, blocks = config.decoder_block_out_channels[0], config.num_decoder_blocks
        layers: list[nn.Module] = [
            nn.Conv2d(config.latent_channels, width, 3, padding=1),
            get_activation(config.act_fn),
        ]
        for count in blocks[:-1]:
            layers += [AutoencoderTinyBlock(width, config.act_fn) for _ in range(count)]
            scale = config.upsampling_scaling_factor
            layers.append(nn.Upsample(scale_factor=scale, mode=config.upsample_fn))
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
        layers += [AutoencoderTinyBlock(width, config.act_fn) for _ in range(blocks[-1])]
        layers.append(nn.Conv2d(width, config.out_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.tanh(x / 3) * 3) * 2 - 1


class AutoencoderTiny(ModelMixin[AutoencoderTinyConfig]):
    """A small, fast autoencoder; see the module's docstring.

    Attributes:
        use_slicing: process the images of a batch one after the other.
        use_tiling: process images in overlapping tiles.
        tile_sample_min_size, tile_latent_min_size: size of a tile, in pixels of the image and of
            the latents.
        tile_overlap_factor: the part of a tile that it shares with the next.
    """

    config_class = AutoencoderTinyConfig

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        c = self.config
        self.encoder, self.decoder = EncoderTiny(c), DecoderTiny(c)
        self.use_slicing = False
        self.use_tiling = False
        self.tile_overlap_factor = 0.125
        self.tile_sample_min_size = 512
        self.tile_latent_min_size = 512 // 2 ** (len(c.num_encoder_blocks) - 1)

    @classmethod
    def from_taesd(
        cls,
        decoder: str | PathLike[str],
        encoder: str | PathLike[str] | None = None,
        *,
        torch_dtype: torch.dtype | None = torch.float32,
    ) -> AutoencoderTiny:
        """Load TAESD's own files, such as ``taesd_decoder.safetensors``.

        Args:
            decoder, encoder: the two files; or one that holds both, under ``decoder.`` and
                ``encoder.``.
            torch_dtype: of the weights; None keeps the files'.

        Raises:
            CheckpointError: (an ``OSError``) a file is missing, damaged, or of something else.
        """
        from sfumato.checkpoints.original.taesd import load_taesd

        return load_taesd(decoder, encoder, dtype=torch_dtype)

    def scale_latents(self, x: Tensor) -> Tensor:
        """Latents packed into 0..1, as for a picture of them."""
        packed = x / (2 * self.config.latent_magnitude) + self.config.latent_shift
        return packed.clamp(0, 1)

    def unscale_latents(self, x: Tensor) -> Tensor:
        """The inverse of `scale_latents`."""
        return (x - self.config.latent_shift) * (2 * self.config.latent_magnitude)

    @overload
    def encode(self, x: Tensor, return_dict: Literal[True] = True) -> AutoencoderTinyOutput: ...

    @overload
    def encode(self, x: Tensor, return_dict: bool) -> AutoencoderTinyOutput | tuple[Tensor]: ...

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[Tensor]:
        """The latents of images ``(N, in_channels, H, W)`` in -1..1."""
        with kernels.active():
            latents = self._sliced(self._tiled_latents if self.use_tiling else self.encoder, x)
        return AutoencoderTinyOutput(latents) if return_dict else (latents,)

    @overload
    def decode(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        return_dict: Literal[True] = True,
    ) -> DecoderOutput: ...

    @overload
    def decode(
        self, x: Tensor, generator: torch.Generator | None = None, *, return_dict: bool
    ) -> DecoderOutput | tuple[Tensor]: ...

    def decode(
        self, x: Tensor, generator: torch.Generator | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """The images of latents ``(N, latent_channels, h, w)``.

        ``generator`` is accepted because other autoencoders draw noise here; this one does not.
        """
        with kernels.active():
            image = self._sliced(self._tiled_image if self.use_tiling else self.decoder, x)
        return DecoderOutput(image) if return_dict else (image,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode images, with the latents rounded to 8 bits in between.

        As if they were kept as the channels of a picture file, which they are meant to fit.
        """
        packed = (self.scale_latents(self.encode(sample).latents) * 255).round() / 255
        return self.decode(self.unscale_latents(packed), return_dict=return_dict)

    def enable_slicing(self) -> None:
        """Process the images of a batch one after the other, to save memory."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Process a batch at once (the default)."""
        self.use_slicing = False

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Process images in overlapping tiles, to bound the memory they need."""
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Process images whole (the default)."""
        self.use_tiling = False

    def _tiled_latents(self, x: Tensor) -> Tensor:
        shrink = 2 ** (len(self.config.num_encoder_blocks) - 1)
        tile = max(self.tile_sample_min_size // shrink, 1) * shrink
        return self._tiled(self.encoder, x, tile, shrink, lambda size: math.ceil(size / shrink))

    def _tiled_image(self, x: Tensor) -> Tensor:
        steps = len(self.config.num_decoder_blocks) - 1
        grow = self.config.upsampling_scaling_factor**steps
        return self._tiled(self.decoder, x, self.tile_latent_min_size, 1, lambda size: size * grow)

    def _tiled(
        self,
        network: Callable[[Tensor], Tensor],
        x: Tensor,
        tile: int,
        unit: int,
        resized: Callable[[int], int],
    ) -> Tensor:
        """Tiles laid over each other, each faded in at its upper and left edges.

        The arithmetic is diffusers'.

        Args:
            tile: the size of a tile of ``x``; they start at multiples of ``unit``.
            resized: the size of the result by that of the input.
        """
        shared = int(tile * self.tile_overlap_factor) // unit * unit
        shared = min(max(shared, unit), tile - unit)
        ramp = torch.ones(resized(tile), device=x.device)
        if shared:
            extent = max(resized(shared) - 1, 1)
            ramp = (torch.arange(len(ramp), device=x.device) / extent).clamp(0, 1)
        result: Tensor | None = None
        for top in range(0, x.shape[2], tile - shared):
            for left in range(0, x.shape[3], tile - shared):
                part = network(x[:, :, top : top + tile, left : left + tile])
                if result is None:
                    size = (resized(x.shape[2]), resized(x.shape[3]))
                    result = part.new_zeros(*part.shape[:2], *size)
                (y, h), (z, w) = (resized(top), part.shape[2]), (resized(left), part.shape[3])
                rows = ramp[:h, None] if top else torch.ones_like(ramp[:h, None])
                columns = ramp[None, :w] if left else torch.ones_like(ramp[None, :w])
                mask, place = rows * columns, result[:, :, y : y + h, z : z + w]
                place.copy_(mask * part + (1 - mask) * place)
        return network(x) if result is None else result

    def _sliced(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.use_slicing and x.shape[0] > 1:
            return torch.cat([network(part) for part in x.split(1)])
        return network(x)
