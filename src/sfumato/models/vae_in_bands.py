"""The halves of the autoencoder over bands of rows: little memory, the result of the whole picture.

No layer sees more than a few bands at a time. Between two group norms, which need all of a map
before any of it, two maps wait: what a residual block makes, and what it is added to. They are in
memory up to `IN_MEMORY` bytes, and beyond that in a temporary file; so the memory that a picture
needs does not grow with its height, and nothing is computed twice but two rows for each band.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.models.bands import (
    Map,
    Rows,
    Shape,
    Taken,
    added,
    chain,
    convolved,
    cut,
    doubled,
    each,
    halved,
    normalised,
    teed,
)
from sfumato.models.layers import ResnetBlock2D
from sfumato.runtime.spill import Room

#: Bytes of waiting maps in memory.
IN_MEMORY = 64 * 2**20


def decode_in_bands(decoder: Any, z: Tensor, pixels: int) -> Tensor:
    """What ``decoder(z)`` gives, up to rounding.

    Args:
        decoder: a `vae_blocks.Decoder`.
        z: latents ``(N, C, h, w)``.
        pixels: of a band, about.
    """
    with _room() as room:
        walk = _Walk(pixels, room)
        x = walk.convolve(decoder.conv_in, cut(z, pixels, room))
        x = walk.middle(decoder.mid_block, x)
        dtype = next(decoder.up_blocks.parameters()).dtype
        x = walk.map(x.shape, each(lambda band: band.to(dtype))(x.drain()))
        for block in decoder.up_blocks:
            x = walk.stage(block, x)
        return walk.finish(decoder, x)


def encode_in_bands(encoder: Any, x: Tensor, pixels: int) -> Tensor:
    """What ``encoder(x)`` gives, up to rounding; arguments as in `decode_in_bands`."""
    with _room() as room:
        walk = _Walk(pixels, room)
        y = walk.convolve(encoder.conv_in, cut(x, pixels, room))
        for block in encoder.down_blocks:
            y = walk.stage(block, y)
        return walk.finish(encoder, walk.middle(encoder.mid_block, y))


def _room() -> Room:
    """Where the maps of a walk wait; gradients need all of them in any case."""
    return Room(math.inf if torch.is_grad_enabled() else IN_MEMORY)


class _Walk:
    """One way through a network, in bands of about ``pixels`` pixels."""

    def __init__(self, pixels: int, room: Room) -> None:
        self.pixels = pixels
        self.room = room

    def map(self, shape: Shape, bands: Rows) -> Map:
        """A map that waits in this walk's room."""
        return Map(shape, bands, self.room)

    def convolve(self, layer: Any, x: Map) -> Map:
        shape: Shape = (x.shape[0], layer.out_channels, *x.shape[2:])
        return self.map(shape, convolved(layer, x.shape[2])(x.drain()))

    def middle(self, block: Any, x: Map) -> Map:
        for layer in block.layers():
            x = self.resnet(layer, x) if isinstance(layer, ResnetBlock2D) else self.attend(layer, x)
        return x

    def stage(self, block: Any, x: Map) -> Map:
        for i, resnet in enumerate(block.resnets):
            x = self.resnet(resnet, x)
            if block.attentions is not None:
                x = self.attend(block.attentions[i], x)
        n, channels, height, width = x.shape
        for layer in getattr(block, "upsamplers", ()):
            shape: Shape = (n, channels, 2 * height, 2 * width)
            steps = (doubled(self.pixels), convolved(layer.conv, 2 * height))
            x = self.map(shape, chain(x.drain(), *steps))
        for layer in getattr(block, "downsamplers", ()):
            shape = (n, channels, height // 2, width // 2)
            x = self.map(shape, halved(layer, height)(x.drain()))
        return x

    def attend(self, attention: nn.Module, x: Map) -> Map:
        """Every pixel looks at all others, so the map is put together; it is a small one."""
        return cut(attention(x.whole()), self.pixels, self.room)

    def resnet(self, block: ResnetBlock2D, x: Map) -> Map:
        height, act = x.shape[2], block.nonlinearity
        shape: Shape = (x.shape[0], block.conv1.out_channels, *x.shape[2:])
        first = (normalised(block.norm1, act, x), convolved(block.conv1, height))
        if block.conv_shortcut is None:
            beside, bands = x, x.read()
        else:
            beside = self.map(shape, iter(()))
            bands = teed(x.drain(), beside, block.conv_shortcut)
        inner = self.map(shape, chain(bands, *first))
        second = (normalised(block.norm2, act, inner), convolved(block.conv2, height))
        return self.map(shape, added(Taken(beside.drain()), chain(inner.drain(), *second)))

    def finish(self, network: Any, x: Map) -> Tensor:
        """The last norm and convolution."""
        steps = (
            normalised(network.conv_norm_out, network.conv_act, x),
            convolved(network.conv_out, x.shape[2]),
        )
        return _compact(chain(x.drain(), *steps))


def _compact(bands: Rows) -> Tensor:
    """Bands in one piece, each without the rows that were computed in vain."""
    return torch.cat([band.clone() for band in bands], dim=2)
