"""The blocks of the UNet: residual blocks with attention, then a change of size.

Each is built from a `Stage`, which says what diffusers' many block classes say in their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sfumato.models.attention import Attention
from sfumato.models.freeu import apply_freeu
from sfumato.models.layers import Downsample2D, ResnetBlock2D, Upsample2D
from sfumato.models.transformer import Context, Transformer2DModel
from sfumato.models.unet_config import UNet2DConditionConfig
from sfumato.models.unet_stages import Stage


class UNetBlock(nn.Module):
    """Residual blocks, each followed by its attention if the stage has any."""

    def __init__(self, stage: Stage, config: UNet2DConditionConfig, time_dim: int) -> None:
        super().__init__()
        self.has_cross_attention = stage.attention in ("transformer", "added")
        self.attentions = nn.ModuleList(_attention(stage, config, d) for d in stage.depths)
        self.resnets = nn.ModuleList(
            _resnet(stage, config, time_dim, channels) for channels in stage.in_channels
        )

    def _layer(self, i: int, x: Tensor, temb: Tensor, context: Context) -> Tensor:
        """Residual block ``i`` and the attention after it."""
        x = self.resnets[i](x, temb)
        return self._attend(i, x, context) if i < len(self.attentions) else x

    def _attend(self, i: int, x: Tensor, context: Context) -> Tensor:
        attention = self.attentions[i]
        if isinstance(attention, Transformer2DModel):
            return attention(x, context)
        if not self.has_cross_attention:
            return attention(x)
        mask = context.attention_mask
        if mask is None and context.encoder_hidden_states is not None:
            mask = context.encoder_attention_mask
        return attention(x, context.encoder_hidden_states, mask, **context.attention_kwargs)


class DownBlock(UNetBlock):
    """A block of the first half; it hands every intermediate result to the second half."""

    def __init__(self, stage: Stage, config: UNet2DConditionConfig, time_dim: int) -> None:
        super().__init__(stage, config, time_dim)
        width = stage.out_channels
        self.downsamplers = None
        if stage.resize == "conv":
            padding = config.downsample_padding
            self.downsamplers = nn.ModuleList([Downsample2D(width, padding=padding)])
        elif stage.resize == "resnet":
            resampler = _resnet(stage, config, time_dim, width, resample="down")
            self.downsamplers = nn.ModuleList([resampler])

    def forward(
        self, x: Tensor, temb: Tensor, context: Context, residual: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Features ``(N, in, H, W)`` to features ``(N, out, H/2, W/2)`` and the skips.

        ``residual``, from an adapter, is added after the last layer, before the size changes; in
        blocks that do not look at the text, after it.
        """
        skips: list[Tensor] = []
        for i in range(len(self.resnets)):
            x = self._layer(i, x, temb, context)
            if residual is not None and self.has_cross_attention and i == len(self.resnets) - 1:
                x = x + residual
            skips.append(x)
        for downsampler in self.downsamplers or ():
            by_resnet = isinstance(downsampler, ResnetBlock2D)
            x = downsampler(x, temb) if by_resnet else downsampler(x)
            skips.append(x)
        if residual is not None and not self.has_cross_attention:
            x = skips[-1] = x + residual
        return x, skips


class MidBlock(UNetBlock):
    """The block at the lowest resolution."""

    def forward(self, x: Tensor, temb: Tensor, context: Context) -> Tensor:
        """``x`` is ``(N, C, H, W)``."""
        for i in range(len(self.resnets)):
            x = self._layer(i, x, temb, context)
        return x


class UpBlock(UNetBlock):
    """A block of the second half; each of its layers also sees a skip from the first half.

    Attributes:
        s1, s2, b1, b2: the factors of `apply_freeu` in the first and second block; see
            `UNet2DConditionModel.enable_freeu`.
        freeu_stage: which of them this block uses, 1 or 2; None in blocks that take no part.
    """

    s1: float | None = None
    s2: float | None = None
    b1: float | None = None
    b2: float | None = None

    def __init__(self, stage: Stage, config: UNet2DConditionConfig, time_dim: int) -> None:
        super().__init__(stage, config, time_dim)
        width = stage.out_channels
        self.freeu_stage = stage.freeu_stage
        self.upsamplers = None
        if stage.resize == "conv":
            self.upsamplers = nn.ModuleList([Upsample2D(width)])
        elif stage.resize == "resnet":
            resampler = _resnet(stage, config, time_dim, width, resample="up")
            self.upsamplers = nn.ModuleList([resampler])

    def forward(
        self,
        x: Tensor,
        skips: Sequence[Tensor],
        temb: Tensor,
        context: Context,
        output_size: tuple[int, int] | None = None,
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Features ``(N, in, H, W)`` to features ``(N, out, *output_size)``.

        Args:
            x: features.
            skips: from the mirrored down block, in the order in which it made them.
            temb: time embedding ``(N, time_dim)``.
            context: the text.
            output_size: height and width of the next skip; None for twice the input.
            watch: told how many layers are to come, and what enters the next one, before each.
        """
        for i, skip in enumerate(reversed(skips)):
            if watch is not None:
                watch(len(skips) - i, x)
            x = self._layer(i, torch.cat(self._reweighed(x, skip), dim=1), temb, context)
        for upsampler in self.upsamplers or ():
            if isinstance(upsampler, ResnetBlock2D):
                x = upsampler(x, temb, output_size)
            else:
                x = upsampler(x, output_size)
        return x

    def _reweighed(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        b, s = (self.b1, self.s1) if self.freeu_stage == 1 else (self.b2, self.s2)
        if self.freeu_stage is None or b is None or s is None:
            return x, skip
        return apply_freeu(x, skip, b, s)


def _resnet(
    stage: Stage,
    config: UNet2DConditionConfig,
    time_dim: int,
    in_channels: int,
    resample: str | None = None,
) -> ResnetBlock2D:
    return ResnetBlock2D(
        in_channels,
        stage.out_channels,
        temb_channels=time_dim,
        groups=stage.groups,
        eps=config.norm_eps,
        act_fn=config.act_fn,
        dropout=config.dropout,
        time_scale_shift=config.resnet_time_scale_shift,
        skip_time_act=stage.skip_time_act,
        output_scale_factor=stage.output_scale_factor,
        resample=resample,
    )


def _attention(stage: Stage, config: UNet2DConditionConfig, depth: int) -> nn.Module:
    """The attention after one residual block; see `sfumato.models.unet_stages.KINDS`."""
    width, groups = stage.out_channels, stage.groups
    if stage.attention == "transformer":
        return Transformer2DModel(
            width,
            heads=stage.heads,
            depth=depth,
            cross_attention_dim=stage.context_dim,
            norm_num_groups=groups,
            use_linear_projection=config.use_linear_projection,
            only_cross_attention=stage.only_cross_attention,
            upcast_attention=config.upcast_attention,
        )
    if stage.attention == "self":
        return Attention(
            width,
            heads=stage.heads,
            dim_head=stage.dim_head,
            bias=True,
            norm_num_groups=groups,
            eps=config.norm_eps,
            residual_connection=True,
        )
    return Attention(
        width,
        width,
        heads=stage.heads,
        dim_head=stage.dim_head,
        bias=True,
        cross_attention_norm=config.cross_attention_norm,
        added_kv_proj_dim=stage.context_dim,
        only_cross_attention=stage.only_cross_attention,
        norm_num_groups=groups,
        residual_connection=True,
    )
