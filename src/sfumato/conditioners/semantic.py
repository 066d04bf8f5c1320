"""A map of what is where, made as small as the latents: how landscapes are drawn from labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sfumato.conditioners.condition import Condition
from sfumato.config import Config, check_choice
from sfumato.errors import InputError
from sfumato.models.base import ModelMixin
from sfumato.models.checks import MAX_CHANNELS, check_flags, check_ints, check_number, label

#: How a map can be made smaller, by torch's names. The original has two more, for other
#: numbers of dimensions.
METHODS = ("nearest", "bilinear", "bicubic", "area")


@dataclass(frozen=True, kw_only=True)
class SpatialRescalerConfig(Config):
    """What happens to a map; the fields and defaults are those of the original code.

    Attributes:
        n_stages: how often it is rescaled.
        method: one of `METHODS`.
        multiplier: of height and width, at each stage.
        in_channels: of the map: the number of labels.
        out_channels: of the result; None leaves the channels as they are.
        bias: of the layer that maps channels.
    """

    n_stages: int = 1
    method: str = "bilinear"
    multiplier: float = 0.5
    in_channels: int = 3
    out_channels: int | None = None
    bias: bool = False

    def validate(self) -> None:
        check_ints(self, ("n_stages",), 0, 16)
        check_choice(label(self, "method"), self.method, METHODS)
        check_number(self, "multiplier", 1e-3, 16)
        check_ints(self, ("in_channels",), 1, MAX_CHANNELS)
        if self.out_channels is not None:
            check_ints(self, ("out_channels",), 1, MAX_CHANNELS)
        check_flags(self, ("bias",))


class SpatialRescaler(ModelMixin[SpatialRescalerConfig]):
    """Maps the labels' channels to few (``channel_mapper``) and halves height and width.

    The original rescales before it maps. Both are linear and work on different axes, so their
    order changes nothing but the work: here three channels are rescaled in place of 182.
    """

    config_class = SpatialRescalerConfig

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        given, wanted = self.config.in_channels, self.config.out_channels
        self.channel_mapper = (
            None if wanted is None else nn.Conv2d(given, wanted, 1, bias=self.config.bias)
        )

    @property
    def channels(self) -> int:
        """How many channels the result has."""
        return self.config.out_channels or self.config.in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Rescale maps.

        Args:
            x: whole numbers ``(batch, height, width)``, the label of each pixel; or numbers
                ``(batch, in_channels, height, width)``, how much of each label a pixel is.

        Returns:
            ``(batch, channels, height', width')``.

        Raises:
            InputError: another shape, or a label that does not exist.
        """
        x = self._map_labels(x) if x.ndim == 3 else self._map_channels(x)
        for _ in range(self.config.n_stages):
            x = F.interpolate(x, scale_factor=self.config.multiplier, mode=self.config.method)
        return x

    def _map_channels(self, x: Tensor) -> Tensor:
        count = self.config.in_channels
        if x.ndim != 4 or x.shape[1] != count:
            raise InputError(
                f"A semantic map has to be of the shape (batch, height, width), or (batch, {count},"
                f" height, width) with a channel per label, but is {tuple(x.shape)}."
            )
        x = x.to(self.dtype)
        return x if self.channel_mapper is None else self.channel_mapper(x)

    def _map_labels(self, labels: Tensor) -> Tensor:
        """What `_map_channels` makes of one-hot maps, without making these."""
        count = self.config.in_channels
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise InputError("A semantic map without channels has to hold whole numbers, labels.")
        labels = labels.long()
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < count):
            raise InputError(
                f"A semantic map has to hold labels from 0 to {count - 1} but has "
                f"{int(labels.min())} to {int(labels.max())}.",
                hint="Give unlabelled pixels one of the labels.",
            )
        if self.channel_mapper is None:
            return F.one_hot(labels, count).permute(0, 3, 1, 2).to(self.dtype)
        table = self.channel_mapper.weight[:, :, 0, 0].t()
        found = F.embedding(labels, table)
        if self.channel_mapper.bias is not None:
            found = found + self.channel_mapper.bias
        return found.permute(0, 3, 1, 2).contiguous()

    # As a conditioner

    def count(self, condition: Any) -> int:
        """How many maps these are; see `encode`."""
        return len(_maps(condition))

    def encode(self, condition: Any, device: torch.device, dtype: torch.dtype) -> Condition:
        """Channels beside the latents.

        Args:
            condition: a map, or several. A picture with one channel, an array or a tensor of
                whole numbers ``(height, width)`` or ``(N, height, width)`` says the label of each
                pixel; one of numbers ``(labels, height, width)`` or ``(N, labels, height,
                width)`` how much of each label a pixel is.
        """
        maps = _maps(condition)
        return Condition(channels=self(maps.to(device)).to(dtype))

    def encode_negative(
        self, count: int, negative: Any, device: torch.device, dtype: torch.dtype
    ) -> Condition:
        """Channels of a map to go away from.

        Raises:
            InputError: there is none, which these models were not trained to do without.
        """
        if negative is None:
            raise InputError(
                "This model was trained with maps alone, so there is nothing to guide it away "
                "from.",
                hint="Leave `guidance_scale` at 1, or pass another map as the negative one.",
            )
        made = self.encode(negative, device, dtype).channels
        assert made is not None
        if len(made) not in (1, count):
            raise InputError(f"There are {len(made)} negative maps for {count} maps.")
        return Condition(channels=made.expand(count, -1, -1, -1))


def _maps(condition: Any) -> Tensor:
    """Maps as a tensor: whole numbers ``(N, height, width)`` or ``(N, labels, height, width)``."""
    if isinstance(condition, list | tuple):
        if not condition:
            raise InputError("There are no semantic maps in the list.")
        maps = [_maps(one) for one in condition]
        if len({tuple(one.shape[1:]) for one in maps}) > 1:
            raise InputError("The semantic maps have different sizes, so they make no batch.")
        return torch.cat(maps)
    if isinstance(condition, Image.Image):
        if condition.mode not in ("L", "P", "I", "I;16"):
            raise InputError(
                f"A semantic map has to have one channel, the label of each pixel, but the picture "
                f"is of the mode {condition.mode!r}.",
                hint="Save it as a grey or indexed PNG whose values are the labels.",
            )
        condition = np.asarray(condition)
    if isinstance(condition, np.ndarray):
        whole = condition.dtype.kind in "ui"
        condition = torch.from_numpy(condition.astype(np.int64 if whole else np.float32))
    if not isinstance(condition, Tensor):
        raise InputError(
            f"A semantic map has to be a picture, an array or a tensor, not {type(condition)}."
        )
    single = condition.ndim == 2 or (condition.ndim == 3 and condition.is_floating_point())
    return condition[None] if single else condition
