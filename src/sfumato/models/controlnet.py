"""ControlNets: the first half of a UNet that sees a picture to go by (arXiv:2302.05543).

Its features are added to the skips and the middle of the UNet that draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models.controlnet_config import ControlNetConfig
from sfumato.models.several import SeveralNetworks
from sfumato.models.transformer import Context
from sfumato.models.unet import UNet2DConditionModel
from sfumato.models.unet_config import UNet2DConditionConfig
from sfumato.models.unet_encoder import UNetEncoder, score_bias
from sfumato.outputs import BaseOutput


@dataclass
class ControlNetOutput(BaseOutput):
    """What to add to a UNet's skips, one tensor each, and to its middle."""

    down_block_res_samples: tuple[Tensor, ...]
    mid_block_res_sample: Tensor


class ControlNetConditioningEmbedding(nn.Module):
    """Pictures ``(N, C, H, W)`` to features at the size of latents."""

    def __init__(self, out_channels: int, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for width, following in pairwise(widths):
            self.blocks.append(nn.Conv2d(width, width, 3, padding=1))
            self.blocks.append(nn.Conv2d(width, following, 3, padding=1, stride=2))
        self.conv_out = _zero(nn.Conv2d(widths[-1], out_channels, 3, padding=1))

    def forward(self, conditioning: Tensor) -> Tensor:
        """Eight times smaller with four widths; each width but the first halves the size."""
        x = nn.functional.silu(self.conv_in(conditioning))
        for block in self.blocks:
            x = nn.functional.silu(block(x))
        return self.conv_out(x)


class ControlNetModel(UNetEncoder[ControlNetConfig]):
    """A trainable copy of a UNet's first half, joined to it by convolutions that begin as zero."""

    config_class = ControlNetConfig

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        c = self.config
        self._as_unet = c.as_unet()
        self._build_encoder(self._as_unet)
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            c.block_out_channels[0], c.conditioning_channels, c.conditioning_embedding_out_channels
        )
        widths = list(_skip_widths(c))
        self.controlnet_down_blocks = nn.ModuleList(_zero(nn.Conv2d(w, w, 1)) for w in widths)
        last = c.block_out_channels[-1]
        self.controlnet_mid_block = _zero(nn.Conv2d(last, last, 1))
        self._build_middle(self._as_unet)

    def _unet_config(self) -> UNet2DConditionConfig:
        return self._as_unet

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256),
        load_weights_from_unet: bool = True,
        conditioning_channels: int = 3,
    ) -> Self:
        """A ControlNet to be trained for a UNet, which changes nothing yet.

        Args:
            unet: whose first half to copy.
            controlnet_conditioning_channel_order: ``rgb`` or ``bgr``.
            conditioning_embedding_out_channels: widths of the layers that see the picture.
            load_weights_from_unet: copy the weights too.
            conditioning_channels: of the picture.
        """
        shared = (set(ControlNetConfig.__dataclass_fields__) - {"explicit"}) & set(unet.config)
        net = cls(
            **{name: unet.config[name] for name in shared},
            controlnet_conditioning_channel_order=controlnet_conditioning_channel_order,
            conditioning_embedding_out_channels=conditioning_embedding_out_channels,
            conditioning_channels=conditioning_channels,
        )
        if load_weights_from_unet:
            own = net.state_dict()
            net.load_state_dict(own | {k: v for k, v in unet.state_dict().items() if k in own})
        return net

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | PathLike[str] | Mapping[str, Tensor],
        *,
        torch_dtype: torch.dtype | None = torch.float32,
        **kwargs: Any,
    ) -> Any:
        """Load from a file in the layout of the original code, as ``control_v11p_sd15_canny.pth``.

        Args:
            pretrained_model_link_or_path_or_dict: the file.
            torch_dtype: of the weights; None keeps the file's.
            kwargs: fields of the configuration to override.

        Raises:
            CheckpointError: (an ``OSError``) the file is damaged, unsafe, or of another kind.
        """
        from sfumato.checkpoints.original.controlnet import load_controlnet

        path = pretrained_model_link_or_path_or_dict
        if isinstance(path, Mapping):
            raise InputError("A ControlNet is loaded from a file.")
        return load_controlnet(path, dtype=torch_dtype, **kwargs)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: float = 1.0,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> ControlNetOutput | tuple[Any, Any]:
        """What to add to a UNet that is given the same input.

        Args:
            sample, timestep, encoder_hidden_states, class_labels, timestep_cond, attention_mask,
                added_cond_kwargs, cross_attention_kwargs: see `UNet2DConditionModel.forward`.
            controlnet_cond: the picture ``(N, conditioning_channels, 8 H, 8 W)`` in 0..1.
            conditioning_scale: strength of the result.
            guess_mode: weaken the features of higher resolution, down to a tenth.
            return_dict: return an output object rather than a tuple.
        """
        if self.config.controlnet_conditioning_channel_order == "bgr":
            controlnet_cond = controlnet_cond.flip(1)
        added = added_cond_kwargs or {}
        emb = self._embed(
            sample, timestep, encoder_hidden_states, class_labels, timestep_cond, added
        )
        context = Context(
            encoder_hidden_states,
            score_bias(attention_mask, sample.dtype),
            None,
            {k: v for k, v in (cross_attention_kwargs or {}).items() if k != "scale"},
        )
        x = self.conv_in(sample)
        control = self.controlnet_cond_embedding(controlnet_cond)
        if control.shape[-2:] != x.shape[-2:]:
            raise InputError(
                f"The control picture is made for latents of {tuple(control.shape[-2:])} but they"
                f" are {tuple(x.shape[-2:])}.",
                hint="It has to have the size of the picture to draw.",
            )
        x, skips = self._down(x + control, emb, context, [])
        if self.mid_block is not None:
            x = self.mid_block(x, emb, context)
        down = [layer(s) for s, layer in zip(skips, self.controlnet_down_blocks, strict=True)]
        down, mid = self._scaled(down, self.controlnet_mid_block(x), conditioning_scale, guess_mode)
        return ControlNetOutput(tuple(down), mid) if return_dict else (down, mid)

    def _scaled(
        self, down: list[Tensor], mid: Tensor, scale: float, guess_mode: bool
    ) -> tuple[list[Tensor], Tensor]:
        pooled = self.config.global_pool_conditions
        if guess_mode and not pooled:
            *scales, last = torch.logspace(-1, 0, len(down) + 1, device=mid.device) * scale
        else:
            scales, last = [scale] * len(down), scale
        down = [features * own for features, own in zip(down, scales, strict=True)]
        mid = mid * last
        if pooled:
            down = [features.mean((2, 3), keepdim=True) for features in down]
            mid = mid.mean((2, 3), keepdim=True)
        return down, mid


class MultiControlNetModel(SeveralNetworks):
    """Several ControlNets for one UNet; their features are added up.

    Args:
        controlnets: the networks.
    """

    member_class = ControlNetModel

    def __init__(self, controlnets: Sequence[ControlNetModel]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(controlnets)

    @property
    def members(self) -> nn.ModuleList:
        return self.nets

    def set_attention_slice(self, slice_size: str | int | Sequence[int] | None = "auto") -> None:
        """Bound the memory of attention in all of them; see `UNetEncoder.set_attention_slice`."""
        for net in self.nets:
            net.set_attention_slice(slice_size)  # pyright: ignore[reportCallIssue]

    def set_use_memory_efficient_attention_xformers(
        self, valid: bool, attention_op: Any = None
    ) -> None:
        """Switch xformers on or off in all of them; see `AttentionModel`."""
        for net in self.nets:
            net.set_use_memory_efficient_attention_xformers(valid, attention_op)  # pyright: ignore[reportCallIssue]

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        controlnet_cond: Sequence[Tensor],
        conditioning_scale: Sequence[float],
        **kwargs: Any,
    ) -> tuple[list[Tensor], Tensor]:
        """As `ControlNetModel.forward`, with a picture and a strength for each network."""
        down: list[Tensor] = []
        mid: Any = None
        kwargs = {**kwargs, "return_dict": False}
        for picture, scale, net in zip(
            controlnet_cond, conditioning_scale, self.nets, strict=False
        ):
            own, own_mid = net(sample, timestep, encoder_hidden_states, picture, scale, **kwargs)
            down = [a + b for a, b in zip(down, own, strict=True)] if down else own
            mid = own_mid if mid is None else mid + own_mid
        return down, mid


def _skip_widths(config: ControlNetConfig) -> Iterator[int]:
    """The width of every skip, in order."""
    yield config.block_out_channels[0]
    for number, width in zip(count(1), config.block_out_channels, strict=False):
        resized = number < len(config.block_out_channels)
        yield from (width,) * (config.layers_per_block + resized)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that adds nothing until it is trained."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
