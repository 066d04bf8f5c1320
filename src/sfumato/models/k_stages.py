"""From the UNet's configuration to one description per K block (see `sfumato.models.k_blocks`).

What diffusers derives from the widths around a block, such as which of them look at themselves and
which see a skip, is resolved here; combinations whose parts would not fit are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from sfumato.models.unet_config import UNet2DConditionConfig

K_DOWN_BLOCKS = ("KDownBlock2D", "KCrossAttnDownBlock2D")
K_UP_BLOCKS = ("KUpBlock2D", "KCrossAttnUpBlock2D")

#: Channels of a group in norms.
GROUP_WIDTH = 32


@dataclass(frozen=True)
class KLayer:
    """A residual block, and the attention that follows it.

    Attributes:
        in_channels, out_channels: of the block.
        inner_channels, inner_groups: between its convolutions, and how they are normalised.
    """

    in_channels: int
    inner_channels: int
    inner_groups: int
    out_channels: int


@dataclass(frozen=True)
class KStage:
    """One K block.

    Attributes:
        layers: its residual blocks.
        dim_head: channels of an attention head; None in blocks without attention.
        context_dim: channels of the text.
        attends_itself: whether attention is also from the map to itself.
        resizes: whether the block changes the size at its end.
        sees_skip: whether an up block sees the last map of its mirrored down block.
    """

    layers: tuple[KLayer, ...]
    dim_head: int | None
    context_dim: int
    attends_itself: bool = False
    resizes: bool = True
    sees_skip: bool = False

    def parameters(self) -> int:
        """Roughly the number of parameters: of the convolutions."""
        return sum(
            9 * layer.inner_channels * (layer.in_channels + layer.out_channels)
            for layer in self.layers
        )


def groups_of(channels: int) -> int:
    """The groups in which so many channels are normalised."""
    return max(1, channels // GROUP_WIDTH)


def uses_k_blocks(config: UNet2DConditionConfig) -> bool:
    """Whether a configuration describes a UNet of K blocks.

    Raises:
        ConfigError: only some of the blocks are.
    """
    kinds = (*config.down_block_types, *config.up_block_types)
    of_k = [kind in (*K_DOWN_BLOCKS, *K_UP_BLOCKS) for kind in kinds]
    if any(of_k) and not all(of_k):
        raise ConfigError(
            f"K blocks go with K blocks alone, but `down_block_types` and `up_block_types` are"
            f" {', '.join(kinds)}."
        )
    return all(of_k)


def down(
    config: UNet2DConditionConfig, i: int, layers: int, dim_head: int, context_dim: int
) -> KStage:
    """The down block ``i``."""
    widths, last = config.block_out_channels, len(config.block_out_channels) - 1
    attends, width = config.down_block_types[i] == K_DOWN_BLOCKS[1], widths[i]
    inputs = (widths[max(i - 1, 0)], *(width,) * (layers - 1))
    return _checked(
        KStage(
            layers=tuple(KLayer(channels, width, groups_of(width), width) for channels in inputs),
            dim_head=dim_head if attends else None,
            context_dim=context_dim,
            attends_itself=attends and i == last,
            resizes=i < last,
        )
    )


def up(
    config: UNet2DConditionConfig,
    i: int,
    layers: int,
    dim_head: int,
    context_dim: int,
    time_dim: int,
) -> KStage:
    """The up block ``i``, which goes from the width of its own level to that of the next."""
    widths = config.block_out_channels[::-1]
    last = len(widths) - 1
    width, following = widths[i], widths[min(i + 1, last)]
    attends = config.up_block_types[i] == K_UP_BLOCKS[1]
    # A down block with attention keeps its maps to itself at the lowest size.
    sees_skip = i > 0 or config.down_block_types[-1] == K_DOWN_BLOCKS[0]
    lowest = attends and width == following == time_dim
    if sees_skip == lowest:
        raise ConfigError(
            f"`up_block_types` has a {config.up_block_types[i]} at {i}, which does not fit"
            f" `down_block_types` and the widths: it {'sees' if sees_skip else 'has'}"
            f" {'a' if sees_skip else 'no'} skip, and its widths are {width} and {following} beside"
            f" a time embedding of {time_dim}.",
            hint="The published one has KCrossAttnDownBlock2D last, KCrossAttnUpBlock2D first, and"
            " both as wide as the time embedding.",
        )
    inputs = (2 * width if sees_skip else width, *(width,) * (layers - 1))
    outputs = (*(width,) * (layers - 1), following)
    return _checked(
        KStage(
            layers=tuple(
                # Without attention, the last block narrows the map in both convolutions.
                KLayer(before, width if attends else after, groups_of(width), after)
                for before, after in zip(inputs, outputs, strict=True)
            ),
            dim_head=dim_head if attends else None,
            context_dim=context_dim,
            attends_itself=lowest,
            resizes=i < last,
            sees_skip=sees_skip,
        )
    )


def _checked(stage: KStage) -> KStage:
    for layer in stage.layers:
        norms = {layer.in_channels: groups_of(layer.in_channels)}
        norms[layer.out_channels] = groups_of(layer.out_channels)
        for channels, groups in (*norms.items(), (layer.inner_channels, layer.inner_groups)):
            if channels % groups:
                raise ConfigError(
                    f"`block_out_channels` leads to {channels} channels in a K block, which cannot"
                    f" be normalised in {groups} groups."
                )
        if stage.dim_head is not None and layer.out_channels < stage.dim_head:
            raise ConfigError(
                f"`attention_head_dim` asks for heads of {stage.dim_head} channels in a K block"
                f" with {layer.out_channels} channels."
            )
    return stage
