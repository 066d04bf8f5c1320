"""From an IP-Adapter's tensors to finished parts of a UNet, compared with it before it changes.

All sizes are read from the tensors, so any published or trained adapter fits that has the widths of
the UNet. Nothing is copied on the way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sfumato.adapters.guess import listed
from sfumato.checkpoints.fitting import build_without_memory
from sfumato.checkpoints.recognise import BASES
from sfumato.errors import AdapterError
from sfumato.models.attention import Attention
from sfumato.models.embeddings import ImageProjection
from sfumato.models.image_projections import (
    DIM_HEAD,
    IPAdapterFaceIDImageProjection,
    IPAdapterFaceIDPlusImageProjection,
    IPAdapterFullImageProjection,
    IPAdapterPlusImageProjection,
)
from sfumato.models.ip_adapter import cross_attention_layers
from sfumato.models.ip_attention import IPAdapterAttnProcessor2_0
from sfumato.pipelines.ip_adapter_keys import Layers, Tables, layer_tensors, projection_tensors

logger = logging.getLogger(__name__)

#: Tokens of the image encoder that adapters of the "full" kind are made for.
_FULL_TOKENS = 257
_MOST_LISTED = 1_000


@dataclass(frozen=True, eq=False)
class IPAdapter:
    """One adapter that fits a UNet.

    Attributes:
        projection: from the image encoder's output to context tokens.
        tokens: how many context tokens a picture becomes.
        weights: ``(path of a cross-attention layer, "k" or "v")`` -> weight ``(channels, C)``.
        loras: the tensors of a LoRA that comes with it, under diffusers' names.
    """

    projection: nn.Module
    tokens: int
    weights: Mapping[tuple[str, str], Tensor]
    loras: Mapping[str, Tensor]


def build_adapter(unet: nn.Module, tables: Tables) -> IPAdapter:
    """An adapter of a file's tensors. Names that mean nothing are logged.

    Raises:
        AdapterError: tensors are missing, or were made for another UNet.
    """
    kind, tensors = projection_tensors(tables)
    projection, tokens = _PROJECTIONS[kind](_Sizes(tensors, tables.where))
    extra = _fill(projection, tensors, tables.where)
    layers = layer_tensors(tables)
    weights = _fitting_weights(unet, layers, projection, tables.where)
    loras = _loras(unet, layers, tables.where)
    _report(tables, [*extra, *layers.unknown, *_foreign(unet, tables.unknown)])
    return IPAdapter(projection, tokens, weights, loras)


def make_processors(
    unet: nn.Module, adapters: Sequence[IPAdapter]
) -> dict[str, IPAdapterAttnProcessor2_0]:
    """Path of each cross-attention layer -> its processor, with all adapters at scale 1."""
    processors = {}
    for path in cross_attention_layers(unet):
        hidden, context = adapters[0].weights[path, "k"].shape
        tokens = [adapter.tokens for adapter in adapters]
        sizes: tuple[Any, ...] = (hidden, context, tokens)
        processor = build_without_memory(lambda s: IPAdapterAttnProcessor2_0(*s), sizes)
        state = {
            f"to_{x}_ip.{i}.weight": adapter.weights[path, x]
            for i, adapter in enumerate(adapters)
            for x in "kv"
        }
        processor.load_state_dict(state, assign=True)
        processors[path] = processor
    return processors


# The image projection


class _Sizes:
    """Reads sizes off tensors, or says which tensor is missing."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.tensors, self.where = tensors, where

    def __call__(self, name: str, axis: int) -> int:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise AdapterError(f"{self.where}: the image projection lacks the tensor `{name}`.")
        if tensor.ndim <= axis or 0 in tensor.shape:
            raise AdapterError(f"{self.where}: `{name}` has the shape {tuple(tensor.shape)}.")
        return tensor.shape[axis]

    def parts(self, whole: int, part: int, of: str) -> int:
        """How often a size holds another."""
        if whole % part:
            raise AdapterError(f"{self.where}: {of} are no multiple of {part} but {whole}.")
        return whole // part


def _plain(size: _Sizes) -> tuple[nn.Module, int]:
    width = size("norm.weight", 0)
    tokens = size.parts(size("image_embeds.weight", 0), width, "the rows of `proj.weight`")
    sizes = {"image_embed_dim": size("image_embeds.weight", 1), "cross_attention_dim": width}
    return _made(ImageProjection, **sizes, num_image_text_embeds=tokens), tokens


def _full(size: _Sizes) -> tuple[nn.Module, int]:
    sizes = {
        "image_embed_dim": size("ff.net.0.proj.weight", 1),
        "cross_attention_dim": size("norm.weight", 0),
    }
    return _made(IPAdapterFullImageProjection, **sizes), _FULL_TOKENS


def _face(size: _Sizes) -> tuple[nn.Module, int]:
    width, entry = size("norm.weight", 0), size("ff.net.0.proj.weight", 1)
    tokens = size.parts(size("ff.net.2.weight", 0), width, "the rows of the last layer")
    projection = _made(
        IPAdapterFaceIDImageProjection,
        image_embed_dim=entry,
        cross_attention_dim=width,
        mult=size("ff.net.0.proj.weight", 0) / entry,
        num_tokens=tokens,
    )
    return projection, tokens


def _full_or_face(size: _Sizes) -> tuple[nn.Module, int]:
    """In diffusers' layout the names are the same; faces get several tokens, and more width."""
    one = size("ff.net.2.weight", 0) == size("norm.weight", 0)
    square = size("ff.net.0.proj.weight", 0) == size("ff.net.0.proj.weight", 1)
    return _full(size) if one and square else _face(size)


def _blocks(size: _Sizes, width: int) -> dict[str, Any]:
    """The options that both resamplers share."""
    rows = size("layers.0.attn.to_q.weight", 0)
    inner = size("layers.0.ff.1.net.0.proj.weight", 0)
    depth = 1
    while f"layers.{depth}.attn.to_q.weight" in size.tensors:
        depth += 1
    return {
        "output_dims": size("proj_out.weight", 0),
        "depth": depth,
        "heads": size.parts(rows, DIM_HEAD, "the rows of `to_q`"),
        "ffn_ratio": inner / width,
    }


def _plus(size: _Sizes) -> tuple[nn.Module, int]:
    width, queries = size("latents", 2), size("latents", 1)
    projection = _made(
        IPAdapterPlusImageProjection,
        embed_dims=size("proj_in.weight", 1),
        hidden_dims=width,
        num_queries=queries,
        **_blocks(size, width),
    )
    return projection, queries


def _face_plus(size: _Sizes) -> tuple[nn.Module, int]:
    width, entry = size("proj_in.weight", 0), size("proj.net.0.proj.weight", 1)
    tokens = size.parts(size("proj.net.2.weight", 0), width, "the rows of `proj.2`")
    projection = _made(
        IPAdapterFaceIDPlusImageProjection,
        embed_dims=width,
        hidden_dims=size("proj_in.weight", 1),
        id_embeddings_dim=entry,
        num_tokens=tokens,
        ffproj_ratio=size("proj.net.0.proj.weight", 0) / entry,
        **_blocks(size, width),
    )
    return projection, tokens


_PROJECTIONS: dict[str, Callable[[_Sizes], tuple[nn.Module, int]]] = {
    "plain": _plain,
    "full": _full,
    "face": _face,
    "full or face": _full_or_face,
    "face plus": _face_plus,
    "plus": _plus,
}


def _made(cls: Callable[..., nn.Module], **sizes: Any) -> nn.Module:
    return build_without_memory(lambda options: cls(**options), sizes)


def _fill(projection: nn.Module, tensors: Mapping[str, Tensor], where: str) -> list[str]:
    """Give a projection its tensors; returns the names that it does not have."""
    expected = {name: tuple(tensor.shape) for name, tensor in projection.state_dict().items()}
    wrong = {name: "missing" for name in expected if name not in tensors} | {
        name: f"{list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    }
    if wrong:
        raise AdapterError(
            f"{where}: the image projection is no {type(projection).__name__}:{listed(wrong, 5)}."
        )
    projection.load_state_dict({name: tensors[name] for name in expected}, assign=True)
    return [name for name in tensors if name not in expected]


# Keys and values, and LoRAs


def _fitting_weights(
    unet: nn.Module, layers: Layers, projection: Any, where: str
) -> dict[tuple[str, str], Tensor]:
    """The weights of the second table by path, all of which the UNet has to have."""
    cross = cross_attention_layers(unet)
    paths = {str(2 * k + 1): path for k, path in enumerate(cross)} | {path: path for path in cross}
    weights: dict[tuple[str, str], Tensor] = {}
    wrong: dict[str, str] = {}
    for (layer, x), tensor in layers.tensors.items():
        name = f"{layer}.to_{x}_ip"
        if layer not in paths:
            wrong[name] = "this UNet has no such layer"
        elif tuple(tensor.shape) != _shape(cross[paths[layer]]):
            shape = list(_shape(cross[paths[layer]]))
            wrong[name] = f"{list(tensor.shape)}, not {shape}"
        weights[paths.get(layer, layer), x] = tensor
    wrong |= {f"{p}.to_{x}_ip": "missing" for p in cross for x in "kv" if (p, x) not in weights}
    width = projection.cross_attention_dim
    read = {tensor.shape[-1] for tensor in layers.tensors.values() if tensor.ndim == 2}
    if not wrong and read != {width}:
        wrong["image_proj"] = f"gives tokens of width {width}, but {sorted(read)} are read"
    if wrong:
        found = next((BASES[w] for w in (*read, width) if w in BASES), None)
        raise AdapterError(
            f"{where} does not fit this UNet in {len(wrong)} places:{listed(wrong, 5)}.",
            hint=f"The file looks like an IP-Adapter for {found}." if found else None,
        )
    return weights


def _shape(layer: Attention) -> tuple[int, int]:
    assert layer.to_k is not None
    return layer.to_q.out_features, layer.to_k.in_features


def _loras(unet: nn.Module, layers: Layers, where: str) -> dict[str, Tensor]:
    """The LoRA's tensors by names that `load_lora_weights` knows, compared with the layers."""
    paths = [path for cross in cross_attention_layers(unet) for path in (f"{cross[:-1]}1", cross)]
    tensors: dict[str, Tensor] = {}
    wrong: dict[str, str] = {}
    for (number, projection, part), tensor in layers.loras.items():
        name = f"{number}.{projection}_lora.{part}"
        if number >= len(paths):
            wrong[name] = "this UNet has no such layer"
            continue
        layer: Any = unet.get_submodule(paths[number]).get_submodule(
            f"{projection}.0" if projection == "to_out" else projection
        )
        axis, size = (1, layer.in_features) if part == "down" else (0, layer.out_features)
        other = layers.loras.get((number, projection, "up" if part == "down" else "down"))
        if other is None:
            wrong[name] = "its other half is missing"
        elif tensor.ndim != 2 or tensor.shape[axis] != size or other.ndim != 2:
            wrong[name] = f"{list(tensor.shape)} for a layer {list(layer.weight.shape)}"
        elif tensor.shape[1 - axis] != other.shape[axis]:
            wrong[name] = "its halves have different ranks"
        tensors[f"unet.{paths[number]}.processor.{projection}_lora.{part}.weight"] = tensor
    if wrong:
        raise AdapterError(
            f"{where}: the LoRA in it does not fit in {len(wrong)} places:{listed(wrong, 5)}."
        )
    return tensors


def _foreign(unet: nn.Module, names: Sequence[str]) -> list[str]:
    """Those of a file's other names that are not the UNet's own weights."""
    own = set(unet.state_dict())
    return [name for name in names if name.removeprefix("unet.") not in own]


def _report(tables: Tables, unknown: Sequence[str]) -> None:
    if unknown:
        logger.warning(
            "%s: %d tensors were left out:%s",
            tables.where,
            len(unknown),
            listed(dict.fromkeys(unknown, "unknown"), _MOST_LISTED),
        )
