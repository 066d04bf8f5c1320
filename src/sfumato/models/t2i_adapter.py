"""T2I-Adapters: small networks that turn a picture into features for a UNet (arXiv:2302.08453).

They run once per picture, not once per step; a ControlNet is the larger, stronger relative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from sfumato.config import Config, check_choice
from sfumato.errors import InputError
from sfumato.models import checks
from sfumato.models.base import ModelMixin
from sfumato.models.several import SeveralNetworks

KINDS = ("full_adapter", "full_adapter_xl", "light_adapter")


@dataclass(frozen=True, kw_only=True)
class T2IAdapterConfig(Config):
    """Fields and defaults of diffusers' ``T2IAdapter``."""

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    adapter_type: str = "full_adapter"

    def validate(self) -> None:
        check_choice("adapter_type", self.adapter_type, KINDS)
        checks.check_channels(self, "channels", 4 if self.adapter_type == KINDS[2] else None)
        checks.check_ints(self, ("in_channels",), 1, 4096)
        checks.check_ints(self, ("num_res_blocks",), 1, checks.MAX_LAYERS)
        checks.check_ints(self, ("downscale_factor",), 1, 64)


class _ResnetBlock(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int, last_kernel: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, last_kernel, padding=last_kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block2(self.block1(x).relu())


class _Block(nn.Module):
    """Residual blocks after a change of size and width.

    The light kind (with ``middle``) works at a smaller width in between.
    """

    def __init__(
        self, in_channels: int, out_channels: int, depth: int, down: bool, middle: int | None
    ) -> None:
        super().__init__()
        width = middle or out_channels
        self.downsample = nn.AvgPool2d(2, stride=2, ceil_mode=True) if down else None
        self.in_conv = None
        if middle is not None or in_channels != out_channels:
            self.in_conv = nn.Conv2d(in_channels, width, 1)
        kernel = 1 if middle is None else 3
        self.resnets = nn.Sequential(*(_ResnetBlock(width, kernel) for _ in range(depth)))
        self.out_conv = None if middle is None else nn.Conv2d(middle, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.downsample is None else self.downsample(x)
        x = x if self.in_conv is None else self.in_conv(x)
        x = self.resnets(x)
        return x if self.out_conv is None else self.out_conv(x)


class _Adapter(nn.Module):
    """The network of any kind: pixels folded into channels, then one block per feature."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        folded = config.in_channels * config.downscale_factor**2
        self.unshuffle = nn.PixelUnshuffle(config.downscale_factor)
        self.conv_in = None
        if config.adapter_type != "light_adapter":
            self.conv_in = nn.Conv2d(folded, config.channels[0], 3, padding=1)
        self.body = nn.ModuleList(_blocks(config, folded))
        downs = sum(block.downsample is not None for block in self.body)
        self.total_downscale_factor = config.downscale_factor * 2**downs

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.unshuffle(x)
        x = x if self.conv_in is None else self.conv_in(x)
        features = []
        for block in self.body:
            x = block(x)
            features.append(x)
        return features


def _blocks(config: T2IAdapterConfig, folded: int) -> list[_Block]:
    widths, depth = config.channels, config.num_res_blocks
    if config.adapter_type == "light_adapter":
        steps = [(folded, widths[0]), *pairwise(widths), (widths[-1], widths[-1])]
        return [_Block(a, b, depth, i > 0, b // 4) for i, (a, b) in enumerate(steps)]
    if config.adapter_type == "full_adapter_xl":  # one change of width, and one of size
        steps = [(widths[max(i - 1, 0)] if i == 1 else w, w) for i, w in enumerate(widths)]
        steps = [(widths[1], w) if i == 2 else (a, w) for i, (a, w) in enumerate(steps)]
        return [_Block(a, b, depth, i == 2, None) for i, (a, b) in enumerate(steps)]
    steps = [(widths[0], widths[0]), *pairwise(widths)]
    return [_Block(a, b, depth, i > 0, None) for i, (a, b) in enumerate(steps)]


class T2IAdapter(ModelMixin[T2IAdapterConfig]):
    """A picture to one tensor of features for each down block of a UNet."""

    config_class = T2IAdapterConfig

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        self.adapter = _Adapter(self.config)

    @property
    def downscale_factor(self) -> int:
        """Pixels per feature in the first block, along one side."""
        return self.config.downscale_factor

    @property
    def total_downscale_factor(self) -> int:
        """The same in the last block; pictures should be multiples of it."""
        return self.adapter.total_downscale_factor

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of pictures ``(N, in_channels, H, W)`` in 0..1."""
        factor = self.downscale_factor
        if any(side % factor for side in x.shape[-2:]):
            raise InputError(
                f"The adapter's picture is {tuple(x.shape[-2:])}, which {factor} does not divide."
            )
        return self.adapter(x)


class MultiAdapter(SeveralNetworks):
    """Several adapters for one UNet, whose features are added by weight.

    Args:
        adapters: two or more, of the same sizes.

    Raises:
        InputError: they are fewer, or of different sizes.
    """

    member_class = T2IAdapter

    def __init__(self, adapters: Sequence[T2IAdapter]) -> None:
        super().__init__()
        if len(adapters) < 2:
            raise InputError(
                "For a single adapter, please use the `T2IAdapter` class instead of `MultiAdapter`"
                if adapters
                else "Expecting at least one adapter"
            )
        sizes = {(a.downscale_factor, a.total_downscale_factor) for a in adapters}
        if len(sizes) > 1:
            raise InputError(
                "Expecting all adapters to have the same downscaling behavior, but got"
                f" (downscale_factor, total_downscale_factor) of {sorted(sizes)}."
            )
        self.adapters = nn.ModuleList(adapters)
        self.num_adapter = len(adapters)
        ((self.downscale_factor, self.total_downscale_factor),) = sizes

    @property
    def members(self) -> nn.ModuleList:
        return self.adapters

    def forward(
        self, xs: Sequence[Tensor], adapter_weights: Sequence[float] | None = None
    ) -> list[Tensor]:
        """The weighted sum of all features; equal weights that add up to 1 by default."""
        weights = adapter_weights or [1 / self.num_adapter] * self.num_adapter
        total: list[Tensor] = []
        for x, weight, adapter in zip(xs, weights, self.adapters, strict=True):
            own = [weight * features for features in adapter(x)]
            total = [a + b for a, b in zip(total, own, strict=True)] if total else own
        return total
