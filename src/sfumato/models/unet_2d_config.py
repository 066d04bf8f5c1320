"""The configuration of the UNet without a text: its fields, their ranges, and its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sfumato.config import Config, check_choice, check_int
from sfumato.errors import ConfigError
from sfumato.models import checks
from sfumato.models.checks import MAX_CHANNELS, label
from sfumato.models.conventions import ACTIVATION_KINDS
from sfumato.models.unet_stages import KINDS, Stage, each

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")


@dataclass(frozen=True, kw_only=True)
class UNet2DConfig(Config):
    """Fields and defaults of diffusers' ``UNet2DModel``.

    ``attention_head_dim`` is the width of a head; None stands for a single head. It may also be
    given per block, which diffusers does not know: some of the paper's models have the same number
    of heads in blocks of different widths.
    """

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = (
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "UpBlock2D",
    )
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str | None = "conv"
    upsample_type: str | None = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | tuple[int, ...] | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    def validate(self) -> None:
        self._check_blocks()
        self._check_choices()
        self._check_numbers()
        checks.check_flags(self, ("center_input_sample", "flip_sin_to_cos", "add_attention"))
        down, mid, up = resolve(self)
        stages = (*down, *up, *([mid] if mid else []))
        checks.check_size(self, sum(stage.parameters() for stage in stages))

    def _check_blocks(self) -> None:
        checks.check_ints(self, ("norm_num_groups",), 1, MAX_CHANNELS)
        checks.check_channels(self, "block_out_channels", self.norm_num_groups)
        blocks = len(self.block_out_channels)
        for name, allowed in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            checks.check_tuple(self, name, blocks)
            for kind in self[name]:
                check_choice(label(self, name), kind, allowed)
        widths = self.attention_head_dim
        if isinstance(widths, tuple):
            checks.check_tuple(self, "attention_head_dim", blocks)
        for width in each(widths, 1):
            if width is not None:
                check_int(label(self, "attention_head_dim"), width, 1, MAX_CHANNELS)
        groups, last = self.attn_norm_num_groups, self.block_out_channels[-1]
        if groups is not None:
            check_int(label(self, "attn_norm_num_groups"), groups, 1, MAX_CHANNELS)
            if last % groups:
                raise ConfigError(
                    f"`{label(self, 'attn_norm_num_groups')}` ({groups}) has to divide the "
                    f"channels of the middle ({last})."
                )

    def _check_choices(self) -> None:
        for name, allowed in (
            ("act_fn", tuple(ACTIVATION_KINDS)),
            ("mid_block_type", ("UNetMidBlock2D", None)),
            ("time_embedding_type", ("positional", "fourier", "learned")),
            ("resnet_time_scale_shift", ("default", "scale_shift")),
            ("downsample_type", ("conv", "resnet", None)),
            ("upsample_type", ("conv", "resnet", None)),
            ("class_embed_type", ("timestep", "identity", None)),
        ):
            check_choice(label(self, name), self[name], allowed)
        if self.time_embedding_type == "learned" and self.num_train_timesteps is None:
            raise ConfigError(
                f"`{label(self, 'num_train_timesteps')}` has to be given with "
                "time_embedding_type='learned'."
            )

    def _check_numbers(self) -> None:
        checks.check_ints(self, ("in_channels", "out_channels"), 1, 4096)
        checks.check_ints(self, ("layers_per_block",), 1, checks.MAX_LAYERS)
        checks.check_ints(self, ("downsample_padding",), 0, 4)
        for name, high in (
            ("time_embedding_dim", 4 * MAX_CHANNELS),
            ("num_class_embeds", 1_000_000),
            ("num_train_timesteps", 1_000_000),
        ):
            if self[name] is not None:
                check_int(label(self, name), self[name], 1, high)
        for size in each(self.sample_size, 1):
            if size is not None:
                check_int(label(self, "sample_size"), size, 1, 65_536)
        checks.check_number(self, "freq_shift", 0, max(self.block_out_channels[0] // 2 - 1, 0))
        checks.check_number(self, "mid_block_scale_factor", 1e-3, 1e3)
        checks.check_number(self, "dropout", 0, 1)
        checks.check_number(self, "norm_eps", 0, 1)


def time_width(config: UNet2DConfig) -> int:
    """Channels of the time embedding."""
    return config.time_embedding_dim or 4 * config.block_out_channels[0]


class Stages(NamedTuple):
    """All blocks of a UNet, in the order in which they run."""

    down: tuple[Stage, ...]
    mid: Stage | None
    up: tuple[Stage, ...]


def resolve(config: UNet2DConfig) -> Stages:
    """The blocks that a configuration describes.

    Raises:
        ConfigError: attention heads wider than a block.
    """
    widths = config.block_out_channels
    layers, last = config.layers_per_block, len(widths) - 1
    heads = each(config.attention_head_dim, len(widths))
    down = tuple(
        _stage(
            config,
            config.down_block_types[i],
            (widths[max(i - 1, 0)], *(widths[i],) * (layers - 1)),
            widths[i],
            heads[i],
            config.downsample_type if i < last else None,
            resizes=i < last,
        )
        for i in range(len(widths))
    )
    mid = None
    if config.mid_block_type is not None:
        kind = "self" if config.add_attention else None
        mid = _stage(config, kind, (widths[-1],) * 2, widths[-1], heads[-1], None, resizes=False)
    return Stages(down, mid, tuple(_up(config, i, heads[-1 - i]) for i in range(len(widths))))


def _up(config: UNet2DConfig, i: int, dim_head: int | None) -> Stage:
    """The up block that mirrors down block ``-1 - i``; each layer sees a skip from that side."""
    widths = config.block_out_channels[::-1]
    layers, last = config.layers_per_block, len(widths) - 1
    skips = (*(widths[i],) * layers, widths[min(i + 1, last)])
    inputs = (widths[max(i - 1, 0)], *(widths[i],) * layers)
    channels = tuple(a + b for a, b in zip(inputs, skips, strict=True))
    kind, resampling = config.up_block_types[i], config.upsample_type
    return _stage(config, kind, channels, widths[i], dim_head, resampling, resizes=i < last)


def _stage(
    config: UNet2DConfig,
    kind: str | None,
    in_channels: tuple[int, ...],
    width: int,
    dim_head: int | None,
    resampling: str | None,
    *,
    resizes: bool,
) -> Stage:
    """One block; ``kind`` is a name of diffusers', or the attention of the middle."""
    is_mid = kind in ("self", None)
    attention, resize = (kind, None) if is_mid else KINDS[kind]
    if attention is not None:
        resize = resampling or "conv"  # blocks without attention say it by their names
    dim_head = width if dim_head is None else dim_head
    if attention is not None and dim_head > width:
        raise ConfigError(
            f"`{label(config, 'attention_head_dim')}` asks for heads of {dim_head} channels in a "
            f"block with {width}."
        )
    attentions = 0 if attention is None else len(in_channels) - (1 if is_mid else 0)
    return Stage(
        attention=attention,
        in_channels=in_channels,
        out_channels=width,
        depths=(1,) * attentions,
        heads=width // dim_head,
        dim_head=dim_head,
        context_dim=0,
        only_cross_attention=False,
        groups=config.norm_num_groups,
        resize=resize if resizes else None,
        skip_time_act=False,
        output_scale_factor=config.mid_block_scale_factor if is_mid else 1.0,
    )
