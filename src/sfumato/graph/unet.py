"""The UNet, written once for every backend: the counterpart of `sfumato.models.unet`.

Its blocks are those that `sfumato.models.unet_stages` resolves from the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from sfumato.errors import ConfigError, InputError
from sfumato.graph.layers import (
    activation_kind,
    attention,
    downsample,
    feed_forward,
    map_attention,
    resnet,
    same_padding,
    upsample,
)
from sfumato.graph.ops import A, Ops
from sfumato.graph.unet_conditioning import text_context, time_embedding
from sfumato.graph.weights import Weights
from sfumato.models import unet_stages
from sfumato.models.conventions import MASKED, NORM_EPS, TRANSFORMER_EPS
from sfumato.models.unet_config import UNet2DConditionConfig
from sfumato.models.unet_stages import Stage


@dataclass(frozen=True)
class Residuals(Generic[A]):
    """Features that adapters add to the UNet's own, as plain arrays ``(N, C, H, W)``.

    Attributes:
        down: from a ControlNet, one per skip; they count with ``mid`` alone.
        mid: from a ControlNet, for the middle.
        blocks: from a T2I-Adapter, one per down block.
    """

    down: Sequence[A] | None = None
    mid: A | None = None
    blocks: Sequence[A] = ()


def unet(
    ops: Ops[A],
    weights: Weights,
    config: UNet2DConditionConfig,
    sample: A,
    timesteps: A,
    context: A,
    *,
    class_labels: A | None = None,
    timestep_cond: A | None = None,
    added: Mapping[str, A] | None = None,
    residuals: Residuals[A] | None = None,
    context_mask: A | None = None,
) -> A:
    """Predict.

    Args:
        ops: the backend.
        weights: under diffusers' names.
        config: of the network.
        sample: noisy latents ``(N, in_channels, H, W)``, a plain array of any size.
        timesteps: ``(N,)``, float32.
        context: text tokens ``(N, S, C)``.
        class_labels: ``(N,)`` integers for ``num_class_embeds``, ``(N,)`` float32 times or
            ``(N, C)`` embeddings, as ``class_embed_type`` wants them.
        timestep_cond: ``(N, time_cond_proj_dim)``, the embedded guidance scale of LCMs.
        added: ``image_embeds``, or ``text_embeds`` and ``time_ids``, as ``addition_embed_type``
            and ``encoder_hid_dim_type`` want them.
        residuals: of a ControlNet or T2I-Adapters.
        context_mask: ``(N, S)`` float32, 1 for tokens that are looked at and 0 for others.

    Returns:
        ``(N, out_channels, H, W)``, a plain array of the network's type.

    Raises:
        InputError: an input that the configuration needs is missing, or residuals do not fit.
        WeightsMismatchError: the weights are not those of the configuration.
    """
    added, residuals = added or {}, residuals or Residuals()
    context = ops.cast(context)
    temb = time_embedding(
        ops, weights, config, timesteps, context, class_labels, timestep_cond, added
    )
    text = Text(text_context(ops, weights, config, context, added), mask_bias(ops, context_mask))
    down, middle, up = supported_stages(config)
    net = Network(ops, weights, config, temb, text)
    x = ops.to_map(sample)
    if config.center_input_sample:
        x = ops.add(ops.mul(x, 2.0), -1.0)
    x = ops.conv2d(x, weights / "conv_in", padding=same_padding(config.conv_in_kernel))

    controlled = residuals.down is not None and residuals.mid is not None
    # T2I-Adapters once came through the argument of ControlNets.
    from_adapter = residuals.blocks or (() if controlled else residuals.down or ())
    adapter = [ops.to_map(r) for r in from_adapter]
    skips = [x]
    for i, stage in enumerate(down):
        x = net.down(i, stage, x, skips, adapter.pop(0) if adapter else None)
    if residuals.down is not None and residuals.mid is not None:
        skips = _controlled(ops, skips, residuals.down)
    if middle is not None:
        x = net.mid(middle, x)
        if adapter and ops.map_shape(x) == ops.map_shape(adapter[0]):
            x = ops.add(x, adapter[0])
    if residuals.down is not None and residuals.mid is not None:
        x = ops.add(x, ops.to_map(residuals.mid))
    for i, stage in enumerate(up):
        x = net.up(i, stage, x, skips)
    act = activation_kind(config.act_fn)
    groups = config.norm_num_groups
    assert groups is not None  # none but K blocks do without
    x = ops.group_norm(x, weights / "conv_norm_out", groups, config.norm_eps, act)
    x = ops.conv2d(x, weights / "conv_out", padding=same_padding(config.conv_out_kernel))
    return ops.from_map(x)


def supported_stages(
    config: UNet2DConditionConfig,
) -> tuple[list[Stage], Stage | None, list[Stage]]:
    """The blocks of the first half, the middle and the second half.

    Raises:
        ConfigError: blocks that there is no function for here; it names them.
    """
    stages = unet_stages.resolve(config)
    kinds = (*config.down_block_types, *config.up_block_types)
    unknown = sorted({kind for kind in kinds if kind not in unet_stages.KINDS})
    if unknown:
        raise ConfigError(
            f"Blocks of the kind {', '.join(unknown)} are computed by torch alone.",
            hint="Choose the backend torch.",
        )
    down = [stage for stage in stages.down if isinstance(stage, Stage)]
    return down, stages.mid, [stage for stage in stages.up if isinstance(stage, Stage)]


def mask_bias(ops: Ops[A], mask: A | None) -> A | None:
    """A mask of ones (keep) and zeros as a bias ``(N, 1, 1, S)`` on scores."""
    if mask is None:
        return None
    n, tokens = ops.shape(mask)
    return ops.reshape(ops.mul(ops.add(ops.mul(mask, -1.0), 1.0), MASKED), (n, 1, 1, tokens))


def _controlled(ops: Ops[A], skips: list[A], control: Sequence[A]) -> list[A]:
    if len(control) != len(skips):
        raise InputError(
            f"down_block_additional_residuals has {len(control)} entries but the UNet has "
            f"{len(skips)} skips."
        )
    return [ops.add(a, ops.to_map(b)) for a, b in zip(skips, control, strict=True)]


@dataclass(frozen=True)
class Text(Generic[A]):
    """What cross-attention looks at: tokens ``(N, S, C)``, and a bias on their scores."""

    tokens: A
    bias: A | None


@dataclass(frozen=True)
class Network(Generic[A]):
    """The blocks of one call, with what all of them are told."""

    ops: Ops[A]
    weights: Weights
    config: UNet2DConditionConfig
    temb: A
    text: Text[A]

    def down(self, i: int, stage: Stage, x: A, skips: list[A], residual: A | None) -> A:
        """Down block ``i``; appends to ``skips``. ``residual`` is from a T2I-Adapter."""
        ops, w = self.ops, self.weights / "down_blocks" / i
        looks = stage.attention in ("transformer", "added")
        last = len(stage.in_channels) - 1
        for j in range(last + 1):
            x = self._layer(w, stage, j, x)
            if residual is not None and looks and j == last:
                x = ops.add(x, residual)
            skips.append(x)
        if stage.resize == "conv":
            x = downsample(ops, w / "downsamplers" / 0, x, self.config.downsample_padding)
            skips.append(x)
        elif stage.resize == "resnet":
            _, _, height, width = ops.map_shape(x)
            x = self._resnet(w / "downsamplers" / 0, stage, x, (height // 2, width // 2))
            skips.append(x)
        if residual is not None and not looks:
            x = skips[-1] = ops.add(x, residual)
        return x

    def mid(self, stage: Stage, x: A) -> A:
        """The block at the lowest resolution."""
        for j in range(len(stage.in_channels)):
            x = self._layer(self.weights / "mid_block", stage, j, x)
        return x

    def up(self, i: int, stage: Stage, x: A, skips: list[A]) -> A:
        """Up block ``i``; takes its skips from the end."""
        ops, w = self.ops, self.weights / "up_blocks" / i
        for j in range(len(stage.in_channels)):
            x = self._layer(w, stage, j, ops.concat_maps([x, skips.pop()]))
        if stage.resize is None:
            return x
        size = ops.map_shape(skips[-1])[2:]
        if stage.resize == "conv":
            return upsample(ops, w / "upsamplers" / 0, x, size)
        return self._resnet(w / "upsamplers" / 0, stage, x, size)

    def _layer(self, w: Weights, stage: Stage, j: int, x: A) -> A:
        """Residual block ``j`` and the attention after it."""
        x = self._resnet(w / "resnets" / j, stage, x)
        if j >= len(stage.depths):
            return x
        if stage.attention == "transformer":
            return self._transformer(w / "attentions" / j, stage, stage.depths[j], x)
        looks, config = stage.attention == "added", self.config
        return map_attention(
            self.ops,
            w / "attentions" / j,
            x,
            self.text.tokens if looks else None,
            heads=stage.heads,
            groups=stage.groups,
            eps=NORM_EPS if looks else config.norm_eps,
            bias=self.text.bias if looks else None,
            context_norm=config.cross_attention_norm if looks else None,
        )

    def _resnet(self, w: Weights, stage: Stage, x: A, resize: tuple[int, int] | None = None) -> A:
        config = self.config
        return resnet(
            self.ops,
            w,
            x,
            self.temb,
            groups=stage.groups,
            eps=config.norm_eps,
            act=activation_kind(config.act_fn),
            scale_shift=config.resnet_time_scale_shift == "scale_shift",
            skip_time_act=stage.skip_time_act,
            output_scale_factor=stage.output_scale_factor,
            resize=resize,
        )

    def _transformer(self, w: Weights, stage: Stage, depth: int, x: A) -> A:
        """Transformer blocks over the pixels of ``x``, beside a shortcut."""
        ops = self.ops
        _, _, height, width = ops.map_shape(x)
        h = ops.group_norm(x, w / "norm", stage.groups, TRANSFORMER_EPS)
        linear = self.config.use_linear_projection
        if linear:
            h = ops.linear(ops.tokens(h), w / "proj_in")
        else:
            h = ops.tokens(ops.conv2d(h, w / "proj_in"))
        for i in range(depth):
            h = self._transformer_block(w / "transformer_blocks" / i, stage, h)
        if linear:
            h = ops.map_of_tokens(ops.linear(h, w / "proj_out"), height, width)
        else:
            h = ops.conv2d(ops.map_of_tokens(h, height, width), w / "proj_out")
        return ops.add(x, h)

    def _transformer_block(self, w: Weights, stage: Stage, x: A) -> A:
        """Self-attention, cross-attention and feed-forward, each added to what it normalised."""
        ops, text = self.ops, self.text
        first = text.tokens if stage.only_cross_attention else None
        h = ops.layer_norm(x, w / "norm1", NORM_EPS)
        x = ops.add(x, attention(ops, w / "attn1", h, first, heads=stage.heads))
        h = ops.layer_norm(x, w / "norm2", NORM_EPS)
        h = attention(ops, w / "attn2", h, text.tokens, heads=stage.heads, bias=text.bias)
        x = ops.add(x, h)
        h = ops.layer_norm(x, w / "norm3", NORM_EPS)
        return ops.add(x, feed_forward(ops, w / "ff", h))
