"""Layers one after the other without a map more in memory than the next of them needs.

For the halves of an autoencoder, whose maps at the picture's size are what a picture's memory is.
Called as usual, a layer's input stays for as long as the layer computes, and each result gets
memory of its own; here a map goes when it was read for the last time, or is overwritten, but only
where nobody else can have seen it. The results are the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sfumato.models.fused import is_bare, norm_act
from sfumato.models.layers import ResnetBlock2D
from sfumato.runtime.allocator import release_memory

#: Bytes of a map from which on it is worth asking the allocator for what it keeps.
LARGE = 32 * 2**20


def run(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """``x`` through all layers. It saves more if the caller keeps no reference to ``x``."""
    held, ours = [x], False
    del x
    for layer in layers:
        unseen = not torch.is_grad_enabled() and all(map(is_bare, layer.modules()))
        size = held[0].nbytes
        if ours and unseen and type(layer) is ResnetBlock2D and layer.resample is None:
            held.append(_resnet(layer, held))
        else:
            held.append(layer(held.pop()))
        if size < held[0].nbytes >= LARGE and held[0].device.type == "cpu":
            release_memory()  # what smaller maps left in pieces would lie idle from here on
        ours = unseen
    return held.pop()


def _resnet(block: ResnetBlock2D, held: list[Tensor]) -> Tensor:
    """A residual block without a time, of the one map in ``held``, which is taken and overwritten.

    With a 1x1 convolution beside it, it needs twice the memory of the (wider) input; without one,
    thrice.
    """
    x = held.pop()
    shortcut = x if block.conv_shortcut is None else block.conv_shortcut(x)
    h = norm_act(block.norm1, block.nonlinearity, x, overwrite=shortcut is not x)
    del x
    h = block.conv1(h)
    h = norm_act(block.norm2, block.nonlinearity, h, overwrite=True)
    total = shortcut.add_(block.conv2(block.dropout(h)))
    return total if block.output_scale_factor == 1.0 else total.div_(block.output_scale_factor)
