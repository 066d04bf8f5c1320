"""The blocks of k-diffusion's UNets, which the latent upscaler is made of.

Their norms are scaled and shifted by the time embedding, maps change size through a small blur,
and an up block sees one skip, where its features begin. Names of weights are those of diffusers'
``KDownBlock2D``, ``KCrossAttnDownBlock2D``, ``KUpBlock2D`` and ``KCrossAttnUpBlock2D``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models.attention import Attention
from sfumato.models.k_stages import KLayer, KStage, groups_of
from sfumato.models.layers import Recomputable, get_activation
from sfumato.models.transformer import Context
from sfumato.models.unet_config import UNet2DConditionConfig

_BLUR = (1 / 8, 3 / 8, 3 / 8, 1 / 8)


class AdaGroupNorm(nn.Module):
    """Group norm without weights of its own, scaled and shifted by the time embedding.

    Args:
        temb_channels: width of the time embedding.
        channels, groups, eps: of the norm.
    """

    def __init__(self, temb_channels: int, channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.linear = nn.Linear(temb_channels, 2 * channels)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """``x`` is ``(N, channels, H, W)``, ``temb`` ``(N, temb_channels)``."""
        scale, shift = self.linear(temb)[:, :, None, None].chunk(2, dim=1)
        return F.group_norm(x, self.groups, eps=self.eps) * (1 + scale) + shift


class KResnetBlock(Recomputable):
    """Two convolutions after adaptive norms, beside a shortcut."""

    def __init__(self, layer: KLayer, config: UNet2DConditionConfig, temb_channels: int) -> None:
        super().__init__()
        eps, inner = config.norm_eps, layer.inner_channels
        self.norm1 = AdaGroupNorm(
            temb_channels, layer.in_channels, groups_of(layer.in_channels), eps
        )
        self.conv1 = nn.Conv2d(layer.in_channels, inner, 3, padding=1)
        self.norm2 = AdaGroupNorm(temb_channels, inner, layer.inner_groups, eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(inner, layer.out_channels, 3, padding=1)
        self.nonlinearity = get_activation(config.act_fn)
        self.conv_shortcut = None
        if layer.in_channels != layer.out_channels:
            self.conv_shortcut = nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=False)

    def compute(self, x: Tensor, temb: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)``."""
        h = self.conv1(self.nonlinearity(self.norm1(x, temb)))
        h = self.conv2(self.dropout(self.nonlinearity(self.norm2(h, temb))))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class KAttentionBlock(nn.Module):
    """Attention to the text, and before it to the map itself if so asked; no feed-forward part."""

    def __init__(self, width: int, stage: KStage, temb_channels: int) -> None:
        super().__init__()
        dim_head, groups = stage.dim_head or width, groups_of(width)
        heads = width // dim_head
        self.norm1 = self.attn1 = None
        if stage.attends_itself:
            self.norm1 = AdaGroupNorm(temb_channels, width, groups, 1e-5)
            self.attn1 = Attention(width, heads=heads, dim_head=dim_head, bias=True)
        self.norm2 = AdaGroupNorm(temb_channels, width, groups, 1e-5)
        self.attn2 = Attention(
            width,
            stage.context_dim,
            heads=heads,
            dim_head=dim_head,
            bias=True,
            cross_attention_norm="layer_norm",
        )

    def forward(self, x: Tensor, temb: Tensor, context: Context) -> Tensor:
        """``x`` is ``(N, C, H, W)``."""
        kwargs = context.attention_kwargs
        if self.norm1 is not None and self.attn1 is not None:
            x = x + self.attn1(self.norm1(x, temb), None, context.attention_mask, **kwargs)
        text, mask = context.encoder_hidden_states, context.encoder_attention_mask
        return x + self.attn2(self.norm2(x, temb), text, mask, **kwargs)


class KDownsample2D(nn.Module):
    """Half the height and width (rounded down): blurred, with mirrored edges, and thinned out."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), "reflect")
        return F.conv2d(x, _blur(x, 1.0), stride=2, groups=x.shape[1])


class KUpsample2D(nn.Module):
    """Twice the height and width, by the transpose of the same blur."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), "reflect")
        return F.conv_transpose2d(x, _blur(x, 2.0), stride=2, padding=3, groups=x.shape[1])


def _blur(x: Tensor, gain: float) -> Tensor:
    """The kernel ``(C, 1, 4, 4)``; made anew, so that it follows type and device."""
    line = x.new_tensor(_BLUR) * gain
    return torch.outer(line, line).expand(x.shape[1], 1, 4, 4)


class KBlock(nn.Module):
    """Residual blocks, each followed by its attention if the stage has any."""

    def __init__(self, stage: KStage, config: UNet2DConditionConfig, temb_channels: int) -> None:
        super().__init__()
        self.has_cross_attention = stage.dim_head is not None
        self.resnets = nn.ModuleList(
            KResnetBlock(layer, config, temb_channels) for layer in stage.layers
        )
        if self.has_cross_attention:
            self.attentions = nn.ModuleList(
                KAttentionBlock(layer.out_channels, stage, temb_channels) for layer in stage.layers
            )

    def _layer(self, i: int, x: Tensor, temb: Tensor, context: Context) -> Tensor:
        x = self.resnets[i](x, temb)
        return self.attentions[i](x, temb, context) if self.has_cross_attention else x


class KDownBlock(KBlock):
    """A block of the first half; its last map is a skip, before its size changes."""

    def __init__(self, stage: KStage, config: UNet2DConditionConfig, temb_channels: int) -> None:
        super().__init__(stage, config, temb_channels)
        self.downsamplers = nn.ModuleList([KDownsample2D()]) if stage.resizes else None

    def forward(
        self, x: Tensor, temb: Tensor, context: Context, residual: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Features ``(N, in, H, W)`` to features ``(N, out, H/2, W/2)`` and all maps between.

        Raises:
            InputError: with a ``residual``; there are no T2I-Adapters for these networks.
        """
        if residual is not None:
            raise InputError("A UNet of K blocks takes no residuals of T2I-Adapters.")
        maps: list[Tensor] = []
        for i in range(len(self.resnets)):
            x = self._layer(i, x, temb, context)
            maps.append(x)
        for downsampler in self.downsamplers or ():
            x = downsampler(x)
        return x, maps


class KUpBlock(KBlock):
    """A block of the second half; the lowest one may see no skip."""

    def __init__(self, stage: KStage, config: UNet2DConditionConfig, temb_channels: int) -> None:
        super().__init__(stage, config, temb_channels)
        self.sees_skip = stage.sees_skip
        self.upsamplers = nn.ModuleList([KUpsample2D()]) if stage.resizes else None

    def forward(
        self,
        x: Tensor,
        skips: Sequence[Tensor],
        temb: Tensor,
        context: Context,
        output_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Features ``(N, in, H, W)`` to features ``(N, out, 2 * H, 2 * W)``.

        Args:
            x: features.
            skips: of the mirrored down block, of which the last is used.
            temb: time embedding.
            context: the text.
            output_size: not used; these blocks always double.

        Raises:
            InputError: the first half has rounded the size down, so that the skip is larger.
        """
        if self.sees_skip:
            if x.shape[-2:] != skips[-1].shape[-2:]:
                raise InputError(
                    "The height and width of `sample` have to be divisible by 2 as often as a UNet"
                    " of K blocks halves them."
                )
            x = torch.cat([x, skips[-1]], dim=1)
        for i in range(len(self.resnets)):
            x = self._layer(i, x, temb, context)
        for upsampler in self.upsamplers or ():
            x = upsampler(x)
        return x
