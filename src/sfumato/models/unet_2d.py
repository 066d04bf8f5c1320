"""The UNet that knows no text: for unconditional models, and for pictures given beside the noise.

The architecture is that of Dhariwal and Nichol (arXiv:2105.05233), as in the unconditional models
of Rombach et al. (arXiv:2112.10752) and in DDPM; fields and weight names are diffusers'. The blocks
are those of `UNet2DConditionModel`, without cross-attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models.embeddings import (
    GaussianFourierProjection,
    LearnedTimesteps,
    TimestepEmbedding,
    Timesteps,
)
from sfumato.models.transformer import Context
from sfumato.models.unet_2d_config import UNet2DConfig as UNet2DConfig
from sfumato.models.unet_2d_config import resolve, time_width
from sfumato.models.unet_blocks import DownBlock, MidBlock, UpBlock
from sfumato.models.unet_encoder import UNetEncoder, each_timestep
from sfumato.outputs import BaseOutput

#: Standard deviation of the frequencies of Fourier features.
FOURIER_SCALE = 16.0


@dataclass
class UNet2DOutput(BaseOutput):
    """What the UNet returns: its prediction ``(N, out_channels, H, W)``."""

    sample: Tensor


class UNet2DModel(UNetEncoder[UNet2DConfig]):
    """A UNet conditioned on time and, by configuration, on classes."""

    config_class = UNet2DConfig

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        c = self.config
        first, width, stages = c.block_out_channels[0], time_width(c), resolve(c)
        shared: Any = c  # blocks read what the configurations of all UNets have
        self.conv_in = nn.Conv2d(c.in_channels, first, 3, padding=1)
        self.time_proj, waves = _time_projection(c)
        self.time_embedding = TimestepEmbedding(waves, width)
        self.class_embedding = _class_embedding(c, waves, width)
        self.down_blocks = nn.ModuleList(DownBlock(s, shared, width) for s in stages.down)
        self.up_blocks = nn.ModuleList(UpBlock(s, shared, width) for s in stages.up)
        self.mid_block = None if stages.mid is None else MidBlock(stages.mid, shared, width)
        for attention in self.mid_block.attentions if self.mid_block is not None else ():
            _settle_middle(attention, c)
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, first, eps=c.norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(first, c.out_channels, 3, padding=1)

    def _unet_config(self) -> Any:
        return self.config

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict.

        Args:
            sample: noisy pictures or latents ``(N, in_channels, H, W)``; H and W need not be
                multiples of anything.
            timestep: one number, or one per sample.
            class_labels: ``(N,)`` numbers of classes or times, or ``(N, C)`` embeddings, as the
                configuration's ``class_embed_type`` wants them.
            return_dict: return an output object rather than a tuple.

        Raises:
            InputError: class labels are missing, or the model has no classes.
        """
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0
        emb = self.time_embedding(self.get_time_embed(sample, timestep))
        class_emb = self.get_class_embed(sample, class_labels)
        if class_emb is not None:
            emb = emb + class_emb
        elif class_labels is not None:
            raise InputError(
                "This UNet has no classes.",
                hint="`class_labels` need a model with `num_class_embeds` or `class_embed_type`.",
            )
        x, skips = self._down(self.conv_in(sample), emb, Context(), [])
        if self.mid_block is not None:
            x = self.mid_block(x, emb, Context())
        x = self._up(x, skips, emb)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        if self.config.time_embedding_type == "fourier":
            x = x / each_timestep(sample, timestep).view(-1, 1, 1, 1).to(x.dtype)
        return UNet2DOutput(x) if return_dict else (x,)

    def _up(self, x: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        """The second half, which uses up the skips from the last to the first."""
        for block in self.up_blocks:
            assert isinstance(block, UpBlock)
            start = len(skips) - len(block.resnets)
            skips, own = skips[:start], skips[start:]
            size = (skips[-1].shape[-2], skips[-1].shape[-1]) if skips else None
            x = block(x, own, emb, Context(), size)
        return x


def _time_projection(config: UNet2DConfig) -> tuple[nn.Module, int]:
    """The layer that turns timesteps into waves (or vectors of their own), and its width."""
    width = config.block_out_channels[0]
    if config.time_embedding_type == "fourier":
        waves = GaussianFourierProjection(
            width, flip_sin_to_cos=False, scale=FOURIER_SCALE, log=True
        )
        return waves, 2 * width
    if config.time_embedding_type == "learned":
        assert config.num_train_timesteps is not None
        return LearnedTimesteps(config.num_train_timesteps, width), width
    waves = Timesteps(
        width, flip_sin_to_cos=config.flip_sin_to_cos, downscale_freq_shift=config.freq_shift
    )
    return waves, width


def _class_embedding(config: UNet2DConfig, waves: int, width: int) -> nn.Module | None:
    if config.class_embed_type == "timestep":
        return TimestepEmbedding(waves, width)
    if config.class_embed_type == "identity":
        return nn.Identity()
    if config.num_class_embeds is not None:
        return nn.Embedding(config.num_class_embeds, width)
    return None


def _settle_middle(attention: Any, config: UNet2DConfig) -> None:
    """Give the middle's attention what is particular to it, as in diffusers.

    Beside residual blocks with "scale_shift" it is not normalised, unless its groups are named.
    """
    groups = config.attn_norm_num_groups
    attention.rescale_output_factor = config.mid_block_scale_factor
    if groups is not None:
        width = config.block_out_channels[-1]
        attention.group_norm = nn.GroupNorm(groups, width, eps=config.norm_eps)
    elif config.resnet_time_scale_shift != "default":
        attention.group_norm = None
