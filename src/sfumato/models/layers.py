"""The convolutional parts that the UNet and the autoencoder share.

Feature maps are ``(batch, channels, height, width)`` in any memory format; layers keep the format
they are given, so a network in ``channels_last`` stays in it. GroupNorm accumulates its statistics
in float32 inside torch even when weights and activations are 16-bit, so nothing is upcast here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sfumato.models.conventions import ACTIVATION_KINDS
from sfumato.models.fused import norm_act

_ACTIVATIONS = {"silu": nn.SiLU, "mish": nn.Mish, "gelu": nn.GELU, "relu": nn.ReLU}


def get_activation(name: str) -> nn.Module:
    """A new activation layer by its configuration name (see `ACTIVATION_KINDS`)."""
    return _ACTIVATIONS[ACTIVATION_KINDS[name]]()


class Recomputable(nn.Module):
    """A module whose activations can be recomputed in the backward pass instead of kept.

    Subclasses implement ``compute``. `ModelMixin.enable_gradient_checkpointing` sets the flag.
    """

    gradient_checkpointing = False
    compute: Callable[..., Tensor]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self.compute, *args, use_reentrant=False, **kwargs)
        return self.compute(*args, **kwargs)


class Downsample2D(nn.Module):
    """Halve height and width with a strided 3x3 convolution or, without one, by averaging.

    Args:
        channels: channels of input and output.
        use_conv: convolve rather than average pairs of pixels.
        padding: zeros around the map; 0 pads the right and lower edges alone, which is how the
            encoder of the autoencoder was trained.
    """

    def __init__(self, channels: int, *, use_conv: bool = True, padding: int = 1) -> None:
        super().__init__()
        self.padding = padding
        if use_conv:
            self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        else:
            self.conv = nn.AvgPool2d(kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        if self.padding == 0 and isinstance(self.conv, nn.Conv2d):
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Upsample2D(nn.Module):
    """Double height and width by repeating pixels, then optionally a 3x3 convolution.

    ``output_size`` asks for another size than the double: odd maps meet their skip connection.
    """

    def __init__(self, channels: int, *, use_conv: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else None

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        if output_size is None:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        else:
            x = F.interpolate(x, size=output_size, mode="nearest")
        return x if self.conv is None else self.conv(x)


class ResnetBlock2D(Recomputable):
    """Two normalised 3x3 convolutions beside a shortcut, told about time in between.

    Args:
        in_channels, out_channels: channels; a 1x1 convolution joins them where they differ.
        temb_channels: width of the time embedding, or None for a block without one.
        groups, eps: of both group normalisations.
        time_scale_shift: "default" adds the projected time embedding before the second norm;
            "scale_shift" scales and shifts the normalised map with it.
        skip_time_act: leave out the activation before the time projection.
        output_scale_factor: the sum of both branches is divided by this.
        resample: "up" or "down" changes the size inside the block (as in ADM), both branches.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        temb_channels: int | None,
        groups: int = 32,
        eps: float = 1e-6,
        act_fn: str = "silu",
        dropout: float = 0.0,
        time_scale_shift: str = "default",
        skip_time_act: bool = False,
        output_scale_factor: float = 1.0,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = time_scale_shift == "scale_shift"
        self.time_emb_proj = None
        if temb_channels is not None:
            width = out_channels * (2 if self.scale_shift else 1)
            self.time_emb_proj = nn.Linear(temb_channels, width)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = get_activation(act_fn)
        self.conv_shortcut = None
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.skip_time_act = skip_time_act
        self.output_scale_factor = output_scale_factor
        self.resample: Upsample2D | Downsample2D | None = None
        if resample == "up":
            self.resample = Upsample2D(in_channels, use_conv=False)
        elif resample == "down":
            self.resample = Downsample2D(in_channels, use_conv=False)

    def compute(
        self, x: Tensor, temb: Tensor | None = None, output_size: tuple[int, int] | None = None
    ) -> Tensor:
        """``x`` is ``(N, in_channels, H, W)``, ``temb`` is ``(N, temb_channels)``.

        ``output_size`` is for blocks that resample "up"; see `Upsample2D`.
        """
        h = norm_act(self.norm1, self.nonlinearity, x)
        if isinstance(self.resample, Upsample2D):
            x, h = self.resample(x, output_size), self.resample(h, output_size)
        elif self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)
        time = self._project_time(temb)
        if time is not None and self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.nonlinearity(self.norm2(h) * (1 + scale) + shift)
        else:
            h = norm_act(self.norm2, self.nonlinearity, h if time is None else h + time)
        h = self.conv2(self.dropout(h))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        x = x + h
        return x if self.output_scale_factor == 1.0 else x / self.output_scale_factor

    def _project_time(self, temb: Tensor | None) -> Tensor | None:
        if self.time_emb_proj is None or temb is None:
            return None
        if not self.skip_time_act:
            temb = self.nonlinearity(temb)
        return self.time_emb_proj(temb)[:, :, None, None]
