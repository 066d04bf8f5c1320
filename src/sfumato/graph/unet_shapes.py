"""Names and shapes of the weights of UNets and ControlNets; see `sfumato.graph.shapes`."""

from __future__ import annotations

from itertools import pairwise

from sfumato.graph.shapes import (
    Named,
    Shapes,
    attention,
    conv,
    linear,
    map_attention,
    mlp,
    norm,
    resnet,
)
from sfumato.graph.unet import supported_stages
from sfumato.models.controlnet_config import ControlNetConfig
from sfumato.models.unet_config import UNet2DConditionConfig
from sfumato.models.unet_stages import Stage, block_width, time_width

#: Tokens that a picture's embedding becomes, by ``encoder_hid_dim_type``.
_PICTURE_TOKENS = {"text_image_proj": 10, "image_proj": 32}


def unet_shapes(config: UNet2DConditionConfig) -> Shapes:
    """Of a `UNet2DConditionModel`.

    Raises:
        ConfigError: blocks that there is no function for here.
    """
    return dict(_unet(config))


def controlnet_shapes(config: ControlNetConfig) -> Shapes:
    """Of a `ControlNetModel`.

    Raises:
        ConfigError: blocks that there is no function for here.
    """
    return dict(_controlnet(config))


def _unet(c: UNet2DConditionConfig) -> Named:
    first = c.block_out_channels[0]
    yield from _first_half(c)
    for i, stage in enumerate(supported_stages(c)[2]):
        yield from _block(c, f"up_blocks.{i}", stage, "upsamplers")
    yield from norm("conv_norm_out", first)
    yield from conv("conv_out", c.out_channels, first, c.conv_out_kernel)


def _controlnet(c: ControlNetConfig) -> Named:
    as_unet, widths = c.as_unet(), c.conditioning_embedding_out_channels
    yield from _first_half(as_unet)
    seen = "controlnet_cond_embedding"
    yield from conv(f"{seen}.conv_in", widths[0], c.conditioning_channels, 3)
    for i, (width, following) in enumerate(pairwise(widths)):
        yield from conv(f"{seen}.blocks.{2 * i}", width, width, 3)
        yield from conv(f"{seen}.blocks.{2 * i + 1}", following, width, 3)
    yield from conv(f"{seen}.conv_out", c.block_out_channels[0], widths[-1], 3)
    for number, width in enumerate(_skips(as_unet)):
        yield from conv(f"controlnet_down_blocks.{number}", width, width, 1)
    last = c.block_out_channels[-1]
    yield from conv("controlnet_mid_block", last, last, 1)


def _skips(c: UNet2DConditionConfig) -> list[int]:
    """The width of every skip, in order."""
    widths = [c.block_out_channels[0]]
    for stage in supported_stages(c)[0]:
        widths += [stage.out_channels] * (len(stage.in_channels) + (stage.resize is not None))
    return widths


def _first_half(c: UNet2DConditionConfig) -> Named:
    """What the two have in common: up to the middle."""
    down, middle, _ = supported_stages(c)
    yield from conv("conv_in", c.block_out_channels[0], c.in_channels, c.conv_in_kernel)
    yield from _conditions(c)
    for i, stage in enumerate(down):
        yield from _block(c, f"down_blocks.{i}", stage, "downsamplers")
    if middle is not None:
        yield from _block(c, "mid_block", middle, "")


def _conditions(c: UNet2DConditionConfig) -> Named:
    """Time, classes, pooled texts and pictures."""
    time, waves = time_width(c), c.block_out_channels[0]
    if c.time_embedding_type == "fourier":
        waves = time
        yield "time_proj.weight", (time // 2,)
    yield from mlp("time_embedding", time, waves)
    if c.time_cond_proj_dim is not None:
        yield from linear("time_embedding.cond_proj", waves, c.time_cond_proj_dim, bias=False)
    yield from _classes(c, time, waves)
    yield from _addition(c, time)
    yield from _text(c)


def _classes(c: UNet2DConditionConfig, time: int, waves: int) -> Named:
    labels, kind = c.projection_class_embeddings_input_dim, c.class_embed_type
    if kind == "timestep":
        yield from mlp("class_embedding", time, waves)
    elif kind == "projection":
        assert labels is not None
        yield from mlp("class_embedding", time, labels)
    elif kind == "simple_projection":
        assert labels is not None
        yield from linear("class_embedding", time, labels)
    elif kind is None and c.num_class_embeds is not None:
        yield "class_embedding.weight", (c.num_class_embeds, time)


def _addition(c: UNet2DConditionConfig, time: int) -> Named:
    kind, name, text = c.addition_embed_type, "add_embedding", c.cross_attention_dim
    if kind == "text_time":
        assert c.projection_class_embeddings_input_dim is not None
        yield from mlp(name, time, c.projection_class_embeddings_input_dim)
    elif kind == "image":
        assert c.encoder_hid_dim is not None
        yield from linear(f"{name}.image_proj", time, c.encoder_hid_dim)
        yield from norm(f"{name}.image_norm", time)
    elif kind == "text_image":
        assert isinstance(text, int)
        yield from linear(f"{name}.text_proj", time, text)
        yield from norm(f"{name}.text_norm", time)
        yield from linear(f"{name}.image_proj", time, text)
    elif kind == "text":
        width = c.encoder_hid_dim or text
        assert isinstance(width, int)
        yield from norm(f"{name}.norm1", width)
        yield f"{name}.pool.positional_embedding", (1, width)
        for part in ("k_proj", "q_proj", "v_proj"):
            yield from linear(f"{name}.pool.{part}", width, width)
        yield from linear(f"{name}.proj", time, width)
        yield from norm(f"{name}.norm2", time)


def _text(c: UNet2DConditionConfig) -> Named:
    """What brings the text, or a picture's embedding, to the width of cross-attention."""
    given, width, name = c.encoder_hid_dim, c.cross_attention_dim, "encoder_hid_proj"
    if given is None:
        return
    assert isinstance(width, int)
    tokens = _PICTURE_TOKENS.get(c.encoder_hid_dim_type or "")
    if tokens is None:
        yield from linear(name, width, given)
        return
    picture = given if c.encoder_hid_dim_type == "image_proj" else width
    yield from linear(f"{name}.image_embeds", tokens * width, picture)
    if c.encoder_hid_dim_type == "image_proj":
        yield from norm(f"{name}.norm", width)
    else:
        yield from linear(f"{name}.text_proj", width, given)


def _block(c: UNet2DConditionConfig, name: str, stage: Stage, resizers: str) -> Named:
    """Residual blocks with their attention, and what changes the size."""
    width, time = stage.out_channels, block_width(c)
    factor = 2 if c.resnet_time_scale_shift == "scale_shift" else 1
    for j, given in enumerate(stage.in_channels):
        yield from resnet(f"{name}.resnets.{j}", width, given, time, factor)
    for j, depth in enumerate(stage.depths):
        yield from _attention(c, f"{name}.attentions.{j}", stage, depth)
    if stage.resize == "conv":
        yield from conv(f"{name}.{resizers}.0.conv", width, width, 3)
    elif stage.resize == "resnet":
        yield from resnet(f"{name}.{resizers}.0", width, width, time, factor)


def _attention(c: UNet2DConditionConfig, name: str, stage: Stage, depth: int) -> Named:
    width, inner = stage.out_channels, stage.heads * stage.dim_head
    if stage.attention == "self":
        yield from map_attention(name, width, inner)
        return
    if stage.attention == "transformer":
        yield from _transformer(c, name, stage, depth)
        return
    yield from norm(f"{name}.group_norm", width)
    if c.cross_attention_norm is not None:
        group = c.cross_attention_norm == "group_norm"
        yield from norm(f"{name}.norm_cross", stage.context_dim if group else width)
    yield from linear(f"{name}.to_q", inner, width)
    for part in ("k", "v"):
        if not stage.only_cross_attention:
            yield from linear(f"{name}.to_{part}", inner, width)
        yield from linear(f"{name}.add_{part}_proj", inner, stage.context_dim)
    yield from linear(f"{name}.to_out.0", width, inner)


def _transformer(c: UNet2DConditionConfig, name: str, stage: Stage, depth: int) -> Named:
    width, context = stage.out_channels, stage.context_dim
    inner = width // stage.heads * stage.heads
    yield from norm(f"{name}.norm", width)
    for end, out, given in (("proj_in", inner, width), ("proj_out", width, inner)):
        layer = linear if c.use_linear_projection else _pointwise
        yield from layer(f"{name}.{end}", out, given)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for number in (1, 2, 3):
            yield from norm(f"{block}.norm{number}", inner)
        first = context if stage.only_cross_attention else inner
        yield from attention(f"{block}.attn1", inner, inner, first)
        yield from attention(f"{block}.attn2", inner, inner, context)
        yield from linear(f"{block}.ff.net.0.proj", 8 * inner, inner)
        yield from linear(f"{block}.ff.net.2", inner, 4 * inner)


def _pointwise(name: str, out: int, given: int) -> Named:
    return conv(name, out, given, 1)
