"""The halves of the autoencoder over bands of rows: little memory, the result of the whole picture.

Untiled, a decoder holds several maps at the picture's size and at its widest. Here it holds one,
the result of a residual block, and a few bands: `_Walk.limit` is that map's size, and whatever
would not fit beside another is computed again each time it is read (the upsampled map, and the
map between the two convolutions of a block, at the picture's size: some 40% more arithmetic).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sfumato.models.bands import (
    Computed,
    Held,
    Map,
    Rows,
    Shape,
    Taken,
    added,
    beside,
    chain,
    convolved,
    cut,
    doubled,
    each,
    halved,
    normalised,
    size,
)
from sfumato.models.layers import ResnetBlock2D


def decode_in_bands(decoder: Any, z: Tensor, pixels: int) -> Tensor:
    """What ``decoder(z)`` gives, up to rounding.

    Args:
        decoder: a `vae_blocks.Decoder`.
        z: latents ``(N, C, h, w)``.
        pixels: of a band, about.
    """
    widths = [block.resnets[-1].conv2.out_channels for block in decoder.up_blocks]
    n, _, h, w = z.shape
    walk = _Walk(pixels, max(n * c * h * w * 4**i for i, c in enumerate(widths)))
    x = walk.convolve(decoder.conv_in, cut(z, pixels))
    x = walk.middle(decoder.mid_block, x)
    dtype = next(decoder.up_blocks.parameters()).dtype
    x = Held(x.shape, chain(x.drain(), each(lambda band: band.to(dtype))))
    for block in decoder.up_blocks:
        x = walk.stage(block, x)
    return walk.finish(decoder, x)


def encode_in_bands(encoder: Any, x: Tensor, pixels: int) -> Tensor:
    """What ``encoder(x)`` gives, up to rounding; arguments as in `decode_in_bands`."""
    widths = [block.resnets[-1].conv2.out_channels for block in encoder.down_blocks]
    n, _, h, w = x.shape
    walk = _Walk(pixels, max(n * c * h * w // 4**i for i, c in enumerate(widths)))
    y: Map = walk.convolve(encoder.conv_in, cut(x, pixels))
    for block in encoder.down_blocks:
        y = walk.stage(block, y)
    return walk.finish(encoder, walk.middle(encoder.mid_block, y))


class _Walk:
    """One way through a network.

    Args:
        pixels: of a band, about.
        limit: numbers in the largest map that cannot be avoided.
    """

    def __init__(self, pixels: int, limit: int) -> None:
        self.pixels = pixels
        self.limit = limit

    def convolve(self, layer: Any, x: Held) -> Held:
        shape: Shape = (x.shape[0], layer.out_channels, *x.shape[2:])
        return Held(shape, convolved(layer, x.shape[2])(x.drain()))

    def middle(self, block: Any, x: Map) -> Held:
        held = self.resnet(block.resnets[0], x)
        for attention in block.attentions:
            held = self.attend(attention, held)
        return self.resnet(block.resnets[1], held)

    def stage(self, block: Any, x: Map) -> Map:
        for i, resnet in enumerate(block.resnets):
            x = self.resnet(resnet, x)
            if block.attentions is not None:
                x = self.attend(block.attentions[i], x)
        for layer in getattr(block, "upsamplers", ()):
            x = self.upsample(layer, x)
        for layer in getattr(block, "downsamplers", ()):
            n, channels, height, width = x.shape
            shape = (n, channels, height // 2, width // 2)
            x = Held(shape, halved(layer, height)(x.drain()))
        return x

    def attend(self, attention: nn.Module, x: Held) -> Held:
        """Every pixel looks at all others, so the map is put together; it is a small one."""
        return cut(attention(x.whole()), self.pixels)

    def upsample(self, layer: Any, x: Map) -> Map:
        steps = (doubled(self.pixels), convolved(layer.conv, 2 * x.shape[2]))
        large = Computed(x, *steps, channels=layer.conv.out_channels, factor=2)
        return Held(large.shape, large.drain()) if size(large.shape) <= self.limit else large

    def resnet(self, block: ResnetBlock2D, x: Map) -> Held:
        height, act = x.shape[2], each(block.nonlinearity)
        first = (normalised(block.norm1, x), act, convolved(block.conv1, height))
        inner: Map = Computed(x, *first, channels=block.conv1.out_channels)
        if isinstance(x, Held) and size(x.shape) + size(inner.shape) <= self.limit:
            inner = Held(inner.shape, inner.read())
        second = (normalised(block.norm2, inner), act, convolved(block.conv2, height))
        shortcut = block.conv_shortcut or nn.Identity()
        if isinstance(inner, Held):
            out = added(Taken(x.drain()), chain(inner.drain(), *second), shortcut)
        else:
            out = beside(x, lambda bands: chain(bands, *first, *second), shortcut)
        return Held(inner.shape, out)

    def finish(self, network: Any, x: Map) -> Tensor:
        """The last norm and convolution."""
        last = (
            normalised(network.conv_norm_out, x),
            each(network.conv_act),
            convolved(network.conv_out, x.shape[2]),
        )
        return _compact(chain(x.drain(), *last))


def _compact(bands: Rows) -> Tensor:
    """Bands in one piece, each without the rows that were computed in vain."""
    return torch.cat([band.clone() for band in bands], dim=2)
