"""A ControlNet, written once for every backend: the counterpart of `sfumato.models.controlnet`."""

from __future__ import annotations

from collections.abc import Mapping

from sfumato.errors import InputError
from sfumato.graph.layers import same_padding
from sfumato.graph.ops import A, Ops
from sfumato.graph.unet import Network, Residuals, Text, supported_stages
from sfumato.graph.unet_conditioning import text_context, time_embedding
from sfumato.graph.weights import Weights
from sfumato.models.controlnet_config import ControlNetConfig


def controlnet(
    ops: Ops[A],
    weights: Weights,
    config: ControlNetConfig,
    sample: A,
    timesteps: A,
    context: A,
    picture: A,
    *,
    class_labels: A | None = None,
    added: Mapping[str, A] | None = None,
) -> Residuals[A]:
    """What to add to a UNet's skips and its middle, at full strength and before any pooling.

    Args:
        ops, weights, sample, timesteps, context, class_labels, added: as of
            `sfumato.graph.unet.unet`.
        config: of the ControlNet.
        picture: to go by, ``(N, conditioning_channels, 8 H, 8 W)`` in 0..1, in the network's
            order of colours.

    Raises:
        InputError: the picture is not of the size of what is drawn.
        WeightsMismatchError: the weights are not those of the configuration.
    """
    added, as_unet = added or {}, config.as_unet()
    context = ops.cast(context)
    temb = time_embedding(ops, weights, as_unet, timesteps, context, class_labels, None, added)
    text = Text(text_context(ops, weights, as_unet, context, added), None)
    down, middle, _ = supported_stages(as_unet)
    net = Network(ops, weights, as_unet, temb, text)
    x = ops.conv2d(ops.to_map(sample), weights / "conv_in", padding=same_padding(3))
    control = _seen(
        ops, weights / "controlnet_cond_embedding", picture,
        len(config.conditioning_embedding_out_channels),
    )  # fmt: skip
    sizes = ops.map_shape(control)[2:], ops.map_shape(x)[2:]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"The control picture is made for latents of {sizes[0]} but they are {sizes[1]}.",
            hint="It has to have the size of the picture to draw.",
        )
    x = ops.add(x, control)
    skips = [x]
    for i, stage in enumerate(down):
        x = net.down(i, stage, x, skips, None)
    if middle is not None:
        x = net.mid(middle, x)
    joints = weights / "controlnet_down_blocks"
    features = [ops.conv2d(skip, joints / i) for i, skip in enumerate(skips)]
    last = ops.conv2d(x, weights / "controlnet_mid_block")
    return Residuals([ops.from_map(f) for f in features], ops.from_map(last))


def _seen(ops: Ops[A], weights: Weights, picture: A, widths: int) -> A:
    """A picture as features of the size of latents: every second layer halves it."""
    around, x = same_padding(3), ops.to_map(picture)
    x = ops.activation(ops.conv2d(x, weights / "conv_in", padding=around), "silu")
    for number in range(2 * (widths - 1)):
        stride, layer = 1 + number % 2, weights / "blocks" / number
        x = ops.activation(ops.conv2d(x, layer, stride=stride, padding=around), "silu")
    return ops.conv2d(x, weights / "conv_out", padding=around)
