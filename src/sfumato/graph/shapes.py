"""Names and shapes of a network's weights, from its configuration alone.

What `sfumato.models` says by building layers is said here without torch, for files to be checked
before anything is computed, and for random weights. One generator per layer, as in
`sfumato.graph.layers`.
"""

from __future__ import annotations

from collections.abc import Iterator

from sfumato.models.autoencoder_config import AutoencoderKLConfig
from sfumato.safety.scores import CONCEPTS, SPECIAL, SafetyCheckerConfig
from sfumato.text.clip_config import CLIPTextConfig, CLIPVisionConfig

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
#: What a layer has, by full name.
Named = Iterator[tuple[str, Shape]]


def linear(name: str, out: int, given: int, bias: bool = True) -> Named:
    """A layer from ``given`` to ``out`` channels."""
    yield f"{name}.weight", (out, given)
    if bias:
        yield f"{name}.bias", (out,)


def conv(name: str, out: int, given: int, kernel: int, bias: bool = True) -> Named:
    """A convolution from ``given`` to ``out`` channels."""
    yield f"{name}.weight", (out, given, kernel, kernel)
    if bias:
        yield f"{name}.bias", (out,)


def norm(name: str, width: int) -> Named:
    """A norm, of groups or of layers."""
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def mlp(name: str, out: int, given: int) -> Named:
    """The linear layers ``linear_1`` and ``linear_2``."""
    yield from linear(f"{name}.linear_1", out, given)
    yield from linear(f"{name}.linear_2", out, out)


def resnet(name: str, out: int, given: int, time: int | None = None, factor: int = 1) -> Named:
    """A residual block; ``factor`` is 2 where time scales and shifts."""
    yield from norm(f"{name}.norm1", given)
    yield from conv(f"{name}.conv1", out, given, 3)
    if time is not None:
        yield from linear(f"{name}.time_emb_proj", factor * out, time)
    yield from norm(f"{name}.norm2", out)
    yield from conv(f"{name}.conv2", out, out, 3)
    if given != out:
        yield from conv(f"{name}.conv_shortcut", out, given, 1)


def attention(name: str, width: int, inner: int, context: int, bias: bool = False) -> Named:
    """Attention of ``width`` channels to ``context`` channels, by heads of ``inner`` in all."""
    yield from linear(f"{name}.to_q", inner, width, bias)
    for part in ("to_k", "to_v"):
        yield from linear(f"{name}.{part}", inner, context, bias)
    yield from linear(f"{name}.to_out.0", width, inner)


def map_attention(name: str, width: int, inner: int) -> Named:
    """Self-attention of a map's pixels, with its norm."""
    yield from norm(f"{name}.group_norm", width)
    yield from attention(name, width, inner, width, bias=True)


def autoencoder_shapes(config: AutoencoderKLConfig) -> Shapes:
    """Of an `AutoencoderKL`."""
    latent = config.latent_channels
    return dict(_autoencoder(config, latent))


def _autoencoder(c: AutoencoderKLConfig, latent: int) -> Named:
    widths, layers = c.block_out_channels, c.layers_per_block
    last = len(widths) - 1
    yield from conv("encoder.conv_in", widths[0], c.in_channels, 3)
    for i, kind in enumerate(c.down_block_types):
        name, before = f"encoder.down_blocks.{i}", widths[max(i - 1, 0)]
        yield from _vae_stage(name, widths[i], before, layers, kind.startswith("Attn"))
        if i < last:
            yield from conv(f"{name}.downsamplers.0.conv", widths[i], widths[i], 3)
    yield from _vae_ends("encoder", c, widths[-1], 2 * latent, widths[-1])
    widths = widths[::-1]
    yield from conv("decoder.conv_in", widths[0], latent, 3)
    for i, kind in enumerate(c.up_block_types):
        name, before = f"decoder.up_blocks.{i}", widths[max(i - 1, 0)]
        yield from _vae_stage(name, widths[i], before, layers + 1, kind.startswith("Attn"))
        if i < last:
            yield from conv(f"{name}.upsamplers.0.conv", widths[i], widths[i], 3)
    yield from _vae_ends("decoder", c, widths[0], c.out_channels, widths[-1])
    if c.use_quant_conv:
        yield from conv("quant_conv", 2 * latent, 2 * latent, 1)
    if c.use_post_quant_conv:
        yield from conv("post_quant_conv", latent, latent, 1)


def _vae_stage(name: str, width: int, before: int, layers: int, attends: bool) -> Named:
    for j in range(layers):
        yield from resnet(f"{name}.resnets.{j}", width, width if j else before)
        if attends:
            yield from map_attention(f"{name}.attentions.{j}", width, width)


def _vae_ends(name: str, c: AutoencoderKLConfig, middle: int, out: int, last: int) -> Named:
    """The middle of a half, of ``middle`` channels, and its end from ``last`` to ``out``."""
    for j in range(2):
        yield from resnet(f"{name}.mid_block.resnets.{j}", middle, middle)
    if c.mid_block_add_attention:
        yield from map_attention(f"{name}.mid_block.attentions.0", middle, middle)
    yield from norm(f"{name}.conv_norm_out", last)
    yield from conv(f"{name}.conv_out", out, last, 3)


def clip_text_shapes(config: CLIPTextConfig) -> Shapes:
    """Of a `CLIPTextModel`."""
    width, name = config.hidden_size, "text_model"
    return {
        f"{name}.embeddings.token_embedding.weight": (config.vocab_size, width),
        f"{name}.embeddings.position_embedding.weight": (config.max_position_embeddings, width),
        **dict(_clip_layers(name, config)),
        **dict(norm(f"{name}.final_layer_norm", width)),
    }


def clip_vision_shapes(config: CLIPVisionConfig) -> Shapes:
    """Of a `CLIPVisionModel`."""
    width, name = config.hidden_size, "vision_model"
    patches = conv(
        f"{name}.embeddings.patch_embedding", width, config.num_channels, config.patch_size, False
    )
    return {
        f"{name}.embeddings.class_embedding": (width,),
        **dict(patches),
        f"{name}.embeddings.position_embedding.weight": (config.num_positions, width),
        **dict(norm(f"{name}.pre_layrnorm", width)),
        **dict(_clip_layers(name, config)),
        **dict(norm(f"{name}.post_layernorm", width)),
    }


def safety_checker_shapes(config: SafetyCheckerConfig) -> Shapes:
    """Of a `StableDiffusionSafetyChecker`."""
    width, vision = config.projection_dim, config.vision_config
    return {
        **{f"vision_model.{name}": shape for name, shape in clip_vision_shapes(vision).items()},
        "visual_projection.weight": (width, vision.hidden_size),
        "concept_embeds": (CONCEPTS, width),
        "special_care_embeds": (SPECIAL, width),
        "concept_embeds_weights": (CONCEPTS,),
        "special_care_embeds_weights": (SPECIAL,),
    }


def _clip_layers(name: str, config: CLIPTextConfig | CLIPVisionConfig) -> Named:
    width, hidden = config.hidden_size, config.intermediate_size
    for i in range(config.num_hidden_layers):
        layer = f"{name}.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{layer}.self_attn.{part}", width, width)
        yield from linear(f"{layer}.mlp.fc1", hidden, width)
        yield from linear(f"{layer}.mlp.fc2", width, hidden)
        for number in (1, 2):
            yield from norm(f"{layer}.layer_norm{number}", width)
