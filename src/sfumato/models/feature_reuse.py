"""DeepCache: most of a UNet's features change little from step to step, so some steps reuse them.

Ma et al., "DeepCache: Accelerating Diffusion Models for Free" (arXiv:2312.00858). A full pass keeps
the features that enter the last layers of the second half; a shallow pass computes only the first
layers of the first half and those last ones, on top of the kept features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.models.transformer import Context
from sfumato.models.unet_blocks import DownBlock, UpBlock

if TYPE_CHECKING:
    from sfumato.models.unet import UNet2DConditionModel


@dataclass(eq=False)
class DeepFeatures:
    """What a full pass keeps for shallow ones.

    Attributes:
        depth: how many layers of the first half a shallow pass computes, from 0 to those of the
            first block; it also computes the ``depth + 1`` last layers of the second half.
        features: ``(N, C, H, W)``, what enters the first of those; None before a full pass.
        shallow: whether the pass to come is a shallow one.
    """

    depth: int = 1
    features: Tensor | None = None
    shallow: bool = False

    def watch(self, to_come: int, x: Tensor) -> None:
        """Keep what enters the last ``depth + 1`` layers."""
        if to_come == self.depth + 1:
            self.features = x

    def finish(
        self,
        unet: UNet2DConditionModel,
        x: Tensor,
        emb: Tensor,
        context: Context,
        residuals: Sequence[Tensor],
    ) -> Tensor:
        """A shallow pass, from the first features ``x`` to the last ones.

        Args:
            unet: the network.
            x: after its first convolution.
            emb, context: as in a full pass.
            residuals: a ControlNet's, one per skip; may be empty.
        """
        first, last = unet.down_blocks[0], unet.up_blocks[-1]
        assert isinstance(first, DownBlock) and isinstance(last, UpBlock)
        assert self.features is not None
        skips = [x]
        for layer in range(self.depth):
            x = first._layer(layer, x, emb, context)
            skips.append(x)
        skips = [a + b for a, b in zip(skips, residuals, strict=False)] if residuals else skips
        x, begin = self.features, len(last.resnets) - 1 - self.depth
        for layer, skip in enumerate(reversed(skips), begin):
            joined = torch.cat(last._reweighed(x, skip), dim=1)
            x = last._layer(layer, joined, emb, context)
        return x


_now: ContextVar[DeepFeatures | None] = ContextVar("deep_features", default=None)


@contextmanager
def reusing(features: DeepFeatures) -> Iterator[None]:
    """Let UNets keep or reuse these features for a while, in this thread alone."""
    token = _now.set(features)
    try:
        yield
    finally:
        _now.reset(token)


def features_now() -> DeepFeatures | None:
    """What `reusing` has set in this thread."""
    return _now.get()


def most_layers(unet: UNet2DConditionModel) -> int:
    """The largest ``depth`` that a network has layers for; -1 for one without a second half."""
    if not len(unet.down_blocks) or not len(unet.up_blocks):
        return -1
    first, last = unet.down_blocks[0], unet.up_blocks[-1]
    if not isinstance(first, DownBlock) or not isinstance(last, UpBlock):
        return -1
    return min(len(first.resnets), len(last.resnets) - 1)
