"""Names of weights: the original latent-diffusion layout on one side, diffusers' on the other.

Each network has one table of rules, made from its configuration. Both directions, for shapes and
for tensors, read that same table. A rule pairs the name of a module (or of a single tensor) with
its name on the other side; what lies below a module is named alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfumato.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """How the numbers are laid out on both sides, where that differs.

    Attributes:
        to_diffusers: one tensor into the parts that diffusers has.
        to_original: the parts into one tensor.
        shapes: as ``to_diffusers``, for shapes.
    """

    to_diffusers: Callable[[Tensor], list[Tensor]]
    to_original: Callable[[list[Tensor]], Tensor]
    shapes: Callable[[Shape], list[Shape]]


def _join(parts: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(parts)


#: The same numbers in the same order.
SAME = Form(lambda t: [t], lambda parts: parts[0], lambda s: [s])

#: A convolution of one pixel on the original side, a linear layer on the other. Biases are alike.
POINTWISE = Form(
    lambda t: [t.reshape(t.shape[:2]) if t.ndim > 2 else t],
    lambda parts: parts[0][:, :, None, None] if parts[0].ndim == 2 else parts[0],
    lambda s: [s[:2] if len(s) > 2 and set(s[2:]) == {1} else s],
)

#: Three projections one above the other on the original side.
STACKED = Form(
    lambda t: list(t.chunk(3)),
    _join,
    lambda s: [(s[0] // 3, *s[1:])] * 3 if s and s[0] % 3 == 0 else [s] * 3,
)

#: The same for layers that the original applies to rows of pixels, without a second axis of them.
ROWWISE = Form(
    POINTWISE.to_diffusers,
    lambda parts: parts[0][:, :, None] if parts[0].ndim == 2 else parts[0],
    POINTWISE.shapes,
)


def by_heads(heads: int) -> Form:
    """Queries, keys and values that the original stacks head by head, in one such layer."""

    def split(t: Tensor) -> list[Tensor]:
        rows = t.reshape(heads, 3, -1, *t.shape[1:2])
        return [rows[:, i].reshape(-1, *t.shape[1:2]) for i in range(3)]

    def join(parts: list[Tensor]) -> Tensor:
        import torch

        rows = torch.stack([p.reshape(heads, -1, *p.shape[1:]) for p in parts], dim=1)
        joined = rows.reshape(-1, *parts[0].shape[1:])
        return joined[:, :, None] if joined.ndim == 2 else joined

    def shapes(s: Shape) -> list[Shape]:
        fits = bool(s) and s[0] % (3 * heads) == 0
        return [(s[0] // 3, *s[1:2])] * 3 if fits else [s] * 3

    return Form(split, join, shapes)


#: A matrix on the original side that is multiplied from the right, a linear layer on the other.
TRANSPOSED = Form(
    lambda t: [t.t().contiguous()],
    lambda parts: parts[0].t().contiguous(),
    lambda s: [s[::-1]],
)


@dataclass(frozen=True)
class Rule:
    """A module or tensor under its original name, and under the names that diffusers has.

    An ``old`` name is read but never written.
    """

    original: str
    diffusers: tuple[str, ...]
    form: Form = SAME
    old: bool = False


class KeyMap:
    """The rules of one network, applied in either direction.

    Where several rules fit a name, the longest counts.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._by_original: dict[str, Rule] = {}
        self._by_diffusers: dict[str, tuple[Rule, int]] = {}
        for rule in self.rules:
            self._by_original[rule.original] = rule
            for part, name in enumerate(() if rule.old else rule.diffusers):
                self._by_diffusers[name] = (rule, part)

    def to_diffusers(self, name: str) -> tuple[list[str], Form] | None:
        """The names on diffusers' side, in the order of the form's parts; None if unknown.

        >>> unet_keys(UNET_BLOCKS).to_diffusers("input_blocks.1.0.in_layers.2.bias")[0]
        ['down_blocks.0.resnets.0.conv1.bias']
        """
        for head, rest in _cuts(name):
            if rule := self._by_original.get(head):
                return [part + rest for part in rule.diffusers], rule.form
        return None

    def to_original(self, name: str) -> tuple[str, int, Rule] | None:
        """The original name, which part of it this is, and the rule; None if unknown."""
        for head, rest in _cuts(name):
            if found := self._by_diffusers.get(head):
                rule, part = found
                return rule.original + rest, part, rule
        return None

    def shapes_to_diffusers(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes under diffusers' names; names without a rule are left out."""
        result: dict[str, Shape] = {}
        for name, shape in shapes.items():
            if found := self.to_diffusers(name):
                names, form = found
                result.update(zip(names, form.shapes(shape), strict=True))
        return result

    def tensors_to_diffusers(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under diffusers' names, as views; names without a rule are left out."""
        result: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if found := self.to_diffusers(name):
                names, form = found
                result.update(zip(names, form.to_diffusers(tensor), strict=True))
        return result

    def tensors_to_original(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under their original names.

        Raises:
            CheckpointError: a name has no rule, or a part of a tensor is missing.
        """
        result: dict[str, Tensor] = {}
        parts: dict[str, dict[int, Tensor]] = {}
        for name, tensor in tensors.items():
            found = self.to_original(name)
            if found is None:
                raise CheckpointError(f"The original layout has no place for the tensor {name!r}.")
            original, part, rule = found
            parts.setdefault(original, {})[part] = tensor
            if len(parts[original]) == len(rule.diffusers):
                done = parts.pop(original)
                result[original] = rule.form.to_original([done[i] for i in sorted(done)])
        if parts:
            raise CheckpointError(f"Parts of the tensor {next(iter(parts))!r} are missing.")
        return result


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """The name cut at its dots, the longest head first."""
    head = name
    while head:
        yield head, name[len(head) :]
        head = head.rpartition(".")[0]


# The UNet

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "class_embedding.linear_1",
    "label_emb.0.2": "class_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}

#: The fields of a UNet's configuration that its names depend on, as Stable Diffusion 1 has them.
UNET_BLOCKS: Mapping[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
}


def unet_keys(config: Mapping[str, Any]) -> KeyMap:
    """The rules of a UNet with these blocks (a configuration, or a part such as `UNET_BLOCKS`)."""
    return KeyMap(_unet_rules(config))


def _unet_rules(config: Mapping[str, Any]) -> Iterator[Rule]:
    down, up = config["down_block_types"], config["up_block_types"]
    layers = _each(config["layers_per_block"], len(down))
    yield from (Rule(old, (new,)) for old, new in _UNET_ENDS.items())
    index = 1
    for block, kind in enumerate(down):
        new = f"down_blocks.{block}"
        for layer in range(layers[block]):
            yield from _resnet(f"input_blocks.{index}.0", f"{new}.resnets.{layer}")
            if "Attn" in kind:
                where = f"input_blocks.{index}.1", f"{new}.attentions.{layer}"
                yield from _attention(*where, kind, config, block)
            index += 1
        if block < len(down) - 1:
            old, resizer = f"input_blocks.{index}.0", f"{new}.downsamplers.0"
            if _resizes_in_resnet(kind, config.get("downsample_type")):
                yield from _resnet(old, resizer)
            else:
                yield Rule(f"{old}.op", (f"{resizer}.conv",))
            index += 1
    if config.get("mid_block_type") is not None:
        yield from _resnet("middle_block.0", "mid_block.resnets.0")
        kind = "AttnDownBlock2D" if "add_attention" in config else "CrossAttn"
        yield from _attention(
            "middle_block.1", "mid_block.attentions.0", kind, config, len(down) - 1
        )
        yield from _resnet("middle_block.2", "mid_block.resnets.1")
    yield from _up_rules(config, up, layers[::-1])


def _up_rules(
    config: Mapping[str, Any], kinds: Sequence[str], layers: Sequence[int]
) -> Iterator[Rule]:
    index = 0
    for block, kind in enumerate(kinds):
        new = f"up_blocks.{block}"
        for layer in range(layers[block] + 1):
            yield from _resnet(f"output_blocks.{index}.0", f"{new}.resnets.{layer}")
            if "Attn" in kind:
                where = f"output_blocks.{index}.1", f"{new}.attentions.{layer}"
                yield from _attention(*where, kind, config, len(kinds) - 1 - block)
            index += 1
        if block < len(kinds) - 1:
            place = 2 if "Attn" in kind else 1
            old, resizer = f"output_blocks.{index - 1}.{place}", f"{new}.upsamplers.0"
            if _resizes_in_resnet(kind, config.get("upsample_type")):
                yield from _resnet(old, resizer)
            else:
                yield Rule(f"{old}.conv", (f"{resizer}.conv",))


def _resizes_in_resnet(kind: str, resampling: Any) -> bool:
    """Blocks without attention say it in their names, the others in the configuration."""
    return kind.startswith("Resnet") or (kind.startswith("Attn") and resampling == "resnet")


def _attention(
    old: str, new: str, kind: str, config: Mapping[str, Any], level: int
) -> Iterator[Rule]:
    """A transformer, or plain self-attention at a level counted from the picture."""
    if not kind.startswith("Attn"):
        yield Rule(old, (new,))
        return
    width = config["block_out_channels"][level]
    dims = config["attention_head_dim"]
    dim = dims[level] if isinstance(dims, list | tuple) else dims
    yield Rule(f"{old}.norm", (f"{new}.group_norm",))
    parts = tuple(f"{new}.to_{p}" for p in "qkv")
    yield Rule(f"{old}.qkv", parts, by_heads(width // (dim or width)))
    yield Rule(f"{old}.proj_out", (f"{new}.to_out.0",), ROWWISE)


def _resnet(old: str, new: str) -> Iterator[Rule]:
    for inside, name in _RESNET.items():
        yield Rule(f"{old}.{inside}", (f"{new}.{name}",))


def _each(value: Any, count: int) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value] * count


# The autoencoder

_VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


def autoencoder_keys(config: Mapping[str, Any]) -> KeyMap:
    """The rules of an autoencoder: of its blocks' types and number, and layers per block."""
    return KeyMap(_autoencoder_rules(config))


def _autoencoder_rules(config: Mapping[str, Any]) -> Iterator[Rule]:
    blocks, layers = len(config["down_block_types"]), config["layers_per_block"]
    for name in ("quant_conv", "post_quant_conv", "quantize.embedding"):
        yield Rule(name, (name,))
    for side in ("encoder", "decoder"):
        for name in ("conv_in", "conv_out"):
            yield Rule(f"{side}.{name}", (f"{side}.{name}",))
        yield Rule(f"{side}.norm_out", (f"{side}.conv_norm_out",))
        yield from _vae_resnet(f"{side}.mid.block_1", f"{side}.mid_block.resnets.0")
        yield from _vae_attention(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0")
        yield from _vae_resnet(f"{side}.mid.block_2", f"{side}.mid_block.resnets.1")
    for block in range(blocks):
        old, new = f"encoder.down.{block}", f"encoder.down_blocks.{block}"
        yield Rule(f"{old}.downsample.conv", (f"{new}.downsamplers.0.conv",))
        for layer in range(layers):
            yield from _vae_resnet(f"{old}.block.{layer}", f"{new}.resnets.{layer}")
            yield from _vae_attention(f"{old}.attn.{layer}", f"{new}.attentions.{layer}")
        # The original counts the decoder's blocks from the picture, diffusers from the latents.
        old, new = f"decoder.up.{blocks - 1 - block}", f"decoder.up_blocks.{block}"
        yield Rule(f"{old}.upsample.conv", (f"{new}.upsamplers.0.conv",))
        for layer in range(layers + 1):
            yield from _vae_resnet(f"{old}.block.{layer}", f"{new}.resnets.{layer}")
            yield from _vae_attention(f"{old}.attn.{layer}", f"{new}.attentions.{layer}")


def _vae_resnet(old: str, new: str) -> Iterator[Rule]:
    yield Rule(f"{old}.nin_shortcut", (f"{new}.conv_shortcut",))
    for name in ("norm1", "conv1", "norm2", "conv2"):
        yield Rule(f"{old}.{name}", (f"{new}.{name}",))


def _vae_attention(old: str, new: str) -> Iterator[Rule]:
    for inside, name in _VAE_ATTENTION.items():
        yield Rule(f"{old}.{inside}", (f"{new}.{name}",), POINTWISE)


# The text encoders


def clip_keys() -> KeyMap:
    """The rules of CLIP's text encoder as transformers has it, below ``cond_stage_model``.

    Merges from before 2023 lack the ``text_model``.
    """
    names = ("embeddings", "encoder", "final_layer_norm")
    return KeyMap(
        [
            Rule("text_model", ("text_model",)),
            *(Rule(name, (f"text_model.{name}",), old=True) for name in names),
            Rule("text_projection", ("text_projection",)),
        ]
    )


_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


#: No text encoder has more layers.
_MAX_TEXT_LAYERS = 64


def open_clip_keys() -> KeyMap:
    """The rules of OpenCLIP's text encoder."""
    return KeyMap(_open_clip_rules())


def _open_clip_rules() -> Iterator[Rule]:
    yield Rule("token_embedding", ("text_model.embeddings.token_embedding",))
    yield Rule("positional_embedding", ("text_model.embeddings.position_embedding.weight",))
    yield Rule("ln_final", ("text_model.final_layer_norm",))
    yield Rule("text_projection", ("text_projection.weight",), TRANSPOSED)
    for layer in range(_MAX_TEXT_LAYERS):
        old = f"transformer.resblocks.{layer}"
        new = f"text_model.encoder.layers.{layer}"
        for inside, name in _OPEN_CLIP_LAYER.items():
            yield Rule(f"{old}.{inside}", (f"{new}.{name}",))
        for kind in ("weight", "bias"):
            parts = tuple(f"{new}.self_attn.{p}_proj.{kind}" for p in "qkv")
            yield Rule(f"{old}.attn.in_proj_{kind}", parts, STACKED)
