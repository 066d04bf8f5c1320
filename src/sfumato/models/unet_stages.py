"""From the UNet's configuration to one description per block.

Diffusers gives most options once or per block, and some of them bend for the middle or the up
blocks. All of that is resolved here; `sfumato.models.unet_blocks` builds what a `Stage` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfumato.errors import ConfigError
from sfumato.models import k_stages
from sfumato.models.k_stages import KStage

if TYPE_CHECKING:
    from sfumato.models.unet_config import UNet2DConditionConfig

#: What distinguishes the kinds of blocks: the attention after each residual block, and whether
#: the size changes in a convolution or inside a residual block.
#:   "transformer"  a transformer that looks at the text (Stable Diffusion)
#:   "self"         plain self-attention
#:   "added"        one attention over the image and the text together (unCLIP, DeepFloyd IF)
KINDS: dict[str | None, tuple[str | None, str]] = {
    "DownBlock2D": (None, "conv"),
    "CrossAttnDownBlock2D": ("transformer", "conv"),
    "AttnDownBlock2D": ("self", "conv"),
    "SimpleCrossAttnDownBlock2D": ("added", "resnet"),
    "ResnetDownsampleBlock2D": (None, "resnet"),
    "UpBlock2D": (None, "conv"),
    "CrossAttnUpBlock2D": ("transformer", "conv"),
    "AttnUpBlock2D": ("self", "conv"),
    "SimpleCrossAttnUpBlock2D": ("added", "resnet"),
    "ResnetUpsampleBlock2D": (None, "resnet"),
    "UNetMidBlock2D": (None, "conv"),
    "UNetMidBlock2DCrossAttn": ("transformer", "conv"),
    "UNetMidBlock2DSimpleCrossAttn": ("added", "resnet"),
}
DOWN_BLOCKS = tuple(kind for kind in KINDS if kind and "Down" in kind)
UP_BLOCKS = tuple(kind for kind in KINDS if kind and "Up" in kind)
FREEU_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")
MID_BLOCKS = (*(kind for kind in KINDS if kind and "Mid" in kind), None)


@dataclass(frozen=True)
class Stage:
    """One block of the UNet.

    Attributes:
        attention: kind of attention after each residual block; see `KINDS`.
        in_channels: channels that each residual block receives.
        out_channels: channels that the block works in and returns.
        depths: one entry for each attention: the number of its transformer blocks.
        heads: attention heads.
        dim_head: channels of a head (of attentions that are not in a transformer).
        context_dim: channels of the text.
        only_cross_attention: see `Attention` and `BasicTransformerBlock`.
        groups: in which channels are normalised.
        resize: "conv" or "resnet", how the block changes the size at its end, or None.
        skip_time_act, output_scale_factor: see `ResnetBlock2D`.
        freeu_stage: 1 or 2 for the up blocks in which `apply_freeu` acts.
    """

    attention: str | None
    in_channels: tuple[int, ...]
    out_channels: int
    depths: tuple[int, ...]
    heads: int
    dim_head: int
    context_dim: int
    only_cross_attention: bool
    groups: int
    resize: str | None
    skip_time_act: bool
    output_scale_factor: float
    freeu_stage: int | None = None

    def parameters(self) -> int:
        """Roughly the number of parameters: of the convolutions and the transformers."""
        width = self.out_channels
        convolutions = sum(9 * width * (channels + width) for channels in self.in_channels)
        return convolutions + sum(self.depths) * 20 * width * width


@dataclass(frozen=True)
class Stages:
    """All blocks of a UNet, in the order in which they run."""

    down: tuple[Stage | KStage, ...]
    mid: Stage | None
    up: tuple[Stage | KStage, ...]

    def parameters(self) -> int:
        """Roughly the number of parameters, by the largest layers alone."""
        stages = [*self.down, *self.up, *([self.mid] if self.mid else [])]
        return sum(stage.parameters() for stage in stages)


def each(value: Any, count: int) -> tuple[Any, ...]:
    """An option given once or per block, per block."""
    return value if isinstance(value, tuple) else (value,) * count


def time_width(config: UNet2DConditionConfig) -> int:
    """Channels of the time embedding."""
    fourier = config.time_embedding_type == "fourier"
    return config.time_embedding_dim or config.block_out_channels[0] * (2 if fourier else 4)


def block_width(config: UNet2DConditionConfig) -> int:
    """Channels of the embedding that reaches the blocks."""
    return time_width(config) * (2 if config.class_embeddings_concat else 1)


def resolve(config: UNet2DConditionConfig) -> Stages:
    """The blocks that a configuration describes.

    Raises:
        ConfigError: more attention heads than channels, too few depths for the layers, or blocks
            that do not go together.
    """
    blocks = range(len(config.block_out_channels))
    mid = None if config.mid_block_type is None else _mid(config)
    down, up = (_k_down, _k_up) if k_stages.uses_k_blocks(config) else (_down, _up)
    return Stages(tuple(down(config, i) for i in blocks), mid, tuple(up(config, i) for i in blocks))


def _k_down(config: UNet2DConditionConfig, i: int) -> KStage:
    blocks = len(config.block_out_channels)
    return k_stages.down(
        config,
        i,
        layers=each(config.layers_per_block, blocks)[i],
        dim_head=each(config.attention_head_dim, blocks)[i],
        context_dim=each(config.cross_attention_dim, blocks)[i],
    )


def _k_up(config: UNet2DConditionConfig, i: int) -> KStage:
    blocks = len(config.block_out_channels)
    return k_stages.up(
        config,
        i,
        layers=each(config.layers_per_block, blocks)[-1 - i],
        dim_head=each(config.attention_head_dim, blocks)[i],  # not mirrored, as in `_up`
        context_dim=each(config.cross_attention_dim, blocks)[-1 - i],
        time_dim=block_width(config),
    )


def _down(config: UNet2DConditionConfig, i: int) -> Stage:
    widths = config.block_out_channels
    blocks = len(widths)
    layers = each(config.layers_per_block, blocks)[i]
    return _stage(
        config,
        config.down_block_types[i],
        in_channels=(widths[max(i - 1, 0)], *(widths[i],) * (layers - 1)),
        out_channels=widths[i],
        depths=each(config.transformer_layers_per_block, blocks)[i],
        heads=each(config.attention_head_dim, blocks)[i],
        dim_head=each(config.attention_head_dim, blocks)[i],
        context_dim=each(config.cross_attention_dim, blocks)[i],
        only_cross_attention=each(config.only_cross_attention, blocks)[i],
        resizes=i < blocks - 1,
    )


def _up(config: UNet2DConditionConfig, i: int) -> Stage:
    """The up block that mirrors down block ``-1 - i``: it runs once more than that one, on the
    previous features beside a skip from each of its layers and from the layer before it.
    """
    widths = config.block_out_channels[::-1]
    blocks = len(widths)
    layers = each(config.layers_per_block, blocks)[-1 - i] + 1
    skips = (*(widths[i],) * (layers - 1), widths[min(i + 1, blocks - 1)])
    inputs = (widths[max(i - 1, 0)], *(widths[i],) * (layers - 1))
    depths = config.reverse_transformer_layers_per_block
    if depths is None:
        depths = each(config.transformer_layers_per_block, blocks)[::-1]
    return _stage(
        config,
        config.up_block_types[i],
        in_channels=tuple(a + b for a, b in zip(inputs, skips, strict=True)),
        out_channels=widths[i],
        depths=depths[i],
        heads=each(config.attention_head_dim, blocks)[-1 - i],
        # Not mirrored: diffusers counts the widths of heads from the front here, too.
        dim_head=each(config.attention_head_dim, blocks)[i],
        context_dim=each(config.cross_attention_dim, blocks)[-1 - i],
        only_cross_attention=each(config.only_cross_attention, blocks)[-1 - i],
        freeu_stage=i + 1 if i < 2 and config.up_block_types[i] in FREEU_BLOCKS else None,
        resizes=i < blocks - 1,
    )


def _mid(config: UNet2DConditionConfig) -> Stage:
    attention, _ = KINDS[config.mid_block_type]
    width = config.block_out_channels[-1]
    only = config.mid_block_only_cross_attention
    if only is None:
        only = config.only_cross_attention is True
    depth = each(config.transformer_layers_per_block, 1)[-1]
    return _stage(
        config,
        config.mid_block_type,
        in_channels=(width,) * (1 if attention is None else 2),
        out_channels=width,
        depths=each(depth, 1)[:1],
        heads=each(config.attention_head_dim, 1)[-1],
        dim_head=each(config.attention_head_dim, 1)[-1],
        context_dim=each(config.cross_attention_dim, 1)[-1],
        only_cross_attention=only and attention == "added",
        resizes=False,
    )


def _stage(
    config: UNet2DConditionConfig,
    kind: str | None,
    *,
    depths: int | tuple[int, ...],
    heads: int,
    dim_head: int,
    in_channels: tuple[int, ...],
    out_channels: int,
    resizes: bool,
    **common: Any,
) -> Stage:
    attention, resampling = KINDS[kind]
    is_mid = "Mid" in (kind or "")
    if attention in ("self", "added"):
        heads = out_channels // dim_head
    if attention is not None and not 1 <= heads <= out_channels:
        raise ConfigError(
            f"`attention_head_dim` asks for {heads} heads in a {kind} with {out_channels} channels."
            if attention == "transformer"
            else f"`attention_head_dim` asks for heads of {dim_head} channels in a {kind} with "
            f"{out_channels} channels."
        )
    attentions = 0 if attention is None else len(in_channels) - (1 if is_mid else 0)
    depths = each(depths if attention == "transformer" else 1, attentions)
    if len(depths) < attentions:
        raise ConfigError(
            f"`transformer_layers_per_block` (or its reverse) gives {len(depths)} depths to a "
            f"{kind} with {attentions} attentions."
        )
    groups = config.norm_num_groups
    if groups is None and not is_mid:
        raise ConfigError("`norm_num_groups` has to be given, except for K blocks.")
    if groups is None:
        groups = max(min(out_channels // 4, 32), 1)
    if out_channels % groups:
        raise ConfigError(
            f"`block_out_channels` ends with {out_channels}, but the middle block is normalised in"
            f" {groups} groups when `norm_num_groups` is not given."
        )
    adm = resampling == "resnet"
    scale = config.resnet_out_scale_factor if adm else 1.0
    return Stage(
        attention=attention,
        in_channels=in_channels,
        out_channels=out_channels,
        depths=depths[:attentions],
        heads=heads,
        dim_head=dim_head,
        groups=groups,
        resize=resampling if resizes else None,
        skip_time_act=config.resnet_skip_time_act and adm,
        output_scale_factor=config.mid_block_scale_factor if is_mid else scale,
        **common,
    )
