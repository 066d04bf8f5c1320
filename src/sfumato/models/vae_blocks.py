"""The two halves of the autoencoder: encoder and decoder, and the stages they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from sfumato.models.attention import Attention
from sfumato.models.conventions import VAE_EPS as EPS
from sfumato.models.frugal import run
from sfumato.models.fused import is_bare, norm_act
from sfumato.models.layers import Downsample2D, ResnetBlock2D, Upsample2D
from sfumato.models.vae_in_bands import decode_in_bands, encode_in_bands


def _resnet(in_channels: int, out_channels: int, groups: int, act_fn: str) -> ResnetBlock2D:
    return ResnetBlock2D(
        in_channels, out_channels, temb_channels=None, groups=groups, eps=EPS, act_fn=act_fn
    )


def _attention(channels: int, groups: int) -> Attention:
    return Attention(
        channels,
        heads=1,
        dim_head=channels,
        bias=True,
        norm_num_groups=groups,
        eps=EPS,
        residual_connection=True,
    )


class Stage(nn.Module):
    """Residual blocks at one resolution, each followed by attention if asked for, then a resize.

    It is diffusers' ``[Attn]DownEncoderBlock2D`` or ``[Attn]UpDecoderBlock2D``, depending on
    ``resize``.

    Args:
        in_channels, out_channels: channels of input and output.
        num_layers: number of residual blocks.
        attention: add a single-head self-attention after each.
        resize: "down", "up" or None.
        groups, act_fn: of the residual blocks.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        attention: bool,
        resize: str | None,
        groups: int,
        act_fn: str,
    ) -> None:
        super().__init__()
        self.attentions = None
        if attention:
            self.attentions = nn.ModuleList(
                _attention(out_channels, groups) for _ in range(num_layers)
            )
        self.resnets = nn.ModuleList(
            _resnet(in_channels if i == 0 else out_channels, out_channels, groups, act_fn)
            for i in range(num_layers)
        )
        if resize == "down":
            self.downsamplers = nn.ModuleList([Downsample2D(out_channels, padding=0)])
        elif resize == "up":
            self.upsamplers = nn.ModuleList([Upsample2D(out_channels)])
        self._resizers = {"down": "downsamplers", "up": "upsamplers"}.get(resize or "")

    def layers(self) -> Iterator[nn.Module]:
        """What a map goes through, in order."""
        for i, resnet in enumerate(self.resnets):
            yield resnet
            if self.attentions is not None:
                yield self.attentions[i]
        if self._resizers:
            yield from getattr(self, self._resizers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers():
            x = layer(x)
        return x


class MidBlock(nn.Module):
    """Residual block, attention (optional), residual block, at the lowest resolution."""

    def __init__(self, channels: int, *, attention: bool, groups: int, act_fn: str) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([_attention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList(_resnet(channels, channels, groups, act_fn) for _ in range(2))

    def layers(self) -> Iterator[nn.Module]:
        """What a map goes through, in order."""
        yield self.resnets[0]
        yield from self.attentions
        yield self.resnets[1]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers():
            x = layer(x)
        return x


def _layers(blocks: Iterable[Any]) -> Iterator[nn.Module]:
    """The layers of blocks; a block that somebody watches or replaced stays in one piece."""
    for block in blocks:
        if is_bare(block, Stage) or is_bare(block, MidBlock):
            yield from block.layers()
        else:
            yield block


class Encoder(nn.Module):
    """Images ``(N, in_channels, H, W)`` to ``(N, out_channels, H/f, W/f)``.

    ``config`` is that of a first stage; f is 2 to the power of the number of stages less one.
    With ``band_pixels`` the picture is taken in bands of about so many pixels, to save memory.
    """

    def __init__(self, config: Any, out_channels: int) -> None:
        super().__init__()
        widths = config.block_out_channels
        groups, act_fn = config.norm_num_groups, config.act_fn
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, kind in enumerate(config.down_block_types):
            self.down_blocks.append(
                Stage(
                    widths[max(i - 1, 0)],
                    widths[i],
                    num_layers=config.layers_per_block,
                    attention=kind.startswith("Attn"),
                    resize="down" if i < len(widths) - 1 else None,
                    groups=groups,
                    act_fn=act_fn,
                )
            )
        self.mid_block = MidBlock(
            widths[-1], attention=config.mid_block_add_attention, groups=groups, act_fn=act_fn
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor, band_pixels: int | None = None) -> Tensor:
        if band_pixels is not None:
            return encode_in_bands(self, x, band_pixels)
        x = run([self.conv_in, *_layers([*self.down_blocks, self.mid_block])], x)
        return self.conv_out(norm_act(self.conv_norm_out, self.conv_act, x))


class Decoder(nn.Module):
    """Latents ``(N, latent_channels, h, w)`` to images ``(N, out_channels, h*f, w*f)``.

    ``band_pixels`` as for the `Encoder`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        groups, act_fn = config.norm_num_groups, config.act_fn
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.up_blocks = nn.ModuleList()
        self.mid_block = MidBlock(
            widths[0], attention=config.mid_block_add_attention, groups=groups, act_fn=act_fn
        )
        for i, kind in enumerate(config.up_block_types):
            self.up_blocks.append(
                Stage(
                    widths[max(i - 1, 0)],
                    widths[i],
                    num_layers=config.layers_per_block + 1,
                    attention=kind.startswith("Attn"),
                    resize="up" if i < len(widths) - 1 else None,
                    groups=groups,
                    act_fn=act_fn,
                )
            )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor, band_pixels: int | None = None) -> Tensor:
        if band_pixels is not None:
            return decode_in_bands(self, z, band_pixels)
        dtype = next(self.up_blocks.parameters()).dtype
        # The upper half may run in float32 while the rest is 16-bit (`upcast_vae`).
        x = run([self.conv_in, *_layers([self.mid_block])], z).to(dtype)
        x = run(_layers(self.up_blocks), x)
        return self.conv_out(norm_act(self.conv_norm_out, self.conv_act, x))
