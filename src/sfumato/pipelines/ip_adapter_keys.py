"""Names of an IP-Adapter's tensors in files, and diffusers' names for them.

A file has two tables: the image projection, and keys and values for the cross-attention layers.

    image_proj.layers.0.1.1.weight    -> layers.0.ff.1.net.0.proj.weight
    ip_adapter.1.to_k_ip.weight       -> the keys of the first cross-attention layer

Published files number the attention layers; diffusers gives their paths in the UNet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sfumato.errors import AdapterError

IMAGE_PROJ, IP_ADAPTER = "image_proj", "ip_adapter"

#: Beginnings of flat names and the table they mean: of published files, and of training runs.
_BEGINNINGS = {
    "image_proj.": IMAGE_PROJ,
    "ip_adapter.": IP_ADAPTER,
    "image_proj_model.": IMAGE_PROJ,
    "adapter_modules.": IP_ADAPTER,
}
_OWN_PROJECTION = re.compile(
    r"(?:unet\.)?encoder_hid_proj\.image_projection_layers\.(\d{1,3})\.(.+)"
)
_OWN_LAYER = re.compile(r"(?:unet\.)?(.+\.attn2)\.processor\.to_([kv])_ip\.(\d{1,3})\.weight")

_LAYER = re.compile(r"(\d{1,4}|.+\.attn2)(?:\.processor)?\.to_([kv])_ip(?:\.0)?\.weight")
_LORA = re.compile(r"(\d{1,4})\.(to_[qkv]|to_out)_lora\.(down|up)\.weight")

#: From published names to diffusers', for the kind of projection that the names show.
_RESAMPLER = (
    (r"layers\.(\d+)\.0\.norm1\.", r"layers.\1.ln0."),
    (r"layers\.(\d+)\.0\.norm2\.", r"layers.\1.ln1."),
    (r"layers\.(\d+)\.0\.to_(q|kv|k|v)\.", r"layers.\1.attn.to_\2."),
    (r"layers\.(\d+)\.(?:0|attn)\.to_out\.(?!0\.)", r"layers.\1.attn.to_out.0."),
    (r"layers\.(\d+)\.1\.0\.", r"layers.\1.ff.0."),
    (r"layers\.(\d+)\.1\.1\.", r"layers.\1.ff.1.net.0.proj."),
    (r"layers\.(\d+)\.1\.3\.", r"layers.\1.ff.1.net.2."),
)
_FEED_FORWARD = ((r"proj\.0\.", "ff.net.0.proj."), (r"proj\.2\.", "ff.net.2."))
_RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "plain": ((r"proj\.", "image_embeds."),),
    "full": (
        (r"proj\.0\.", "ff.net.0.proj."),
        (r"proj\.2\.", "ff.net.2."),
        (r"proj\.3\.", "norm."),
    ),
    "face": ((r"proj\.0\.", "ff.net.0.proj."), (r"proj\.2\.", "ff.net.2.")),
    "full or face": (),
    "face plus": (
        (r"perceiver_resampler\.", ""),
        (r"proj\.0\.", "proj.net.0.proj."),
        (r"proj\.2\.", "proj.net.2."),
        *_RESAMPLER,
    ),
    "plus": _RESAMPLER,
}
#: A name that only this kind has, in published files or in diffusers'; the first that is found.
_MARKS = (
    ("plain", ("proj.weight", "image_embeds.weight")),
    ("full", ("proj.3.weight",)),
    ("face plus", ("perceiver_resampler.proj_in.weight", "proj.net.0.proj.weight")),
    ("plus", ("latents",)),
    ("face", ("proj.0.weight",)),
    ("full or face", ("ff.net.0.proj.weight",)),
)


@dataclass
class Tables:
    """The tensors of one adapter, as the file names them, and what the file is called.

    Attributes:
        image_proj, ip_adapter: the two tables.
        unknown: names that belong to neither.
    """

    where: str
    image_proj: dict[str, Tensor] = field(default_factory=dict)
    ip_adapter: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Layers:
    """The second table, taken apart.

    Attributes:
        tensors: ``(layer, "k" or "v")`` -> weight; the layer is a number or a path.
        loras: ``(number of an attention layer, projection, "down" or "up")`` -> weight, which
            adapters for faces bring.
        unknown: names that mean nothing here.
    """

    tensors: dict[tuple[str, str], Tensor]
    loras: dict[tuple[int, str, str], Tensor]
    unknown: list[str]


def split_tables(content: Mapping[Any, Any], where: str) -> list[Tables]:
    """The adapters in a file or dictionary: one, or as many as a UNet of diffusers had.

    Raises:
        AdapterError: it is no IP-Adapter, or an entry is no tensor.
    """
    nested = {name: content.get(name) for name in (IMAGE_PROJ, IP_ADAPTER)}
    if any(isinstance(table, Mapping) for table in nested.values()):
        for name, table in nested.items():
            if not isinstance(table, Mapping) or not table:
                raise AdapterError(f"{where} has no `{name}`, which an IP-Adapter needs.")
        image_proj, ip_adapter = (_checked(nested[n] or {}, where) for n in nested)
        unknown = [str(key) for key in content if key not in nested]
        return [Tables(where, image_proj, ip_adapter, unknown)]
    return _from_flat(_checked(content, where), where)


def _from_flat(content: Mapping[str, Tensor], where: str) -> list[Tables]:
    published = Tables(where)
    own: dict[int, Tables] = {}
    unknown: list[str] = []
    for name, tensor in content.items():
        beginning = next((b for b in _BEGINNINGS if name.startswith(b)), None)
        if beginning is not None:
            table = getattr(published, _BEGINNINGS[beginning])
            table[name.removeprefix(beginning)] = tensor
        elif found := _OWN_PROJECTION.fullmatch(name):
            own.setdefault(int(found[1]), Tables(where)).image_proj[found[2]] = tensor
        elif found := _OWN_LAYER.fullmatch(name):
            adapter = own.setdefault(int(found[3]), Tables(where))
            adapter.ip_adapter[f"{found[1]}.to_{found[2]}_ip.weight"] = tensor
        else:
            unknown.append(name)
    adapters = [own[i] for i in sorted(own)]
    if published.image_proj or published.ip_adapter:
        adapters.insert(0, published)
    if not adapters:
        raise AdapterError(
            "Required keys are (`image_proj` and `ip_adapter`) missing from the state dict."
        )
    for adapter in adapters:
        for name in (IMAGE_PROJ, IP_ADAPTER):
            if not getattr(adapter, name):
                raise AdapterError(f"{where} has no `{name}`, which an IP-Adapter needs.")
    adapters[0].unknown = unknown
    return adapters


def _checked(table: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    for name, tensor in table.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise AdapterError(f"{where}: {str(name)[:80]!r} is no tensor with a name.")
        if not tensor.is_floating_point():
            raise AdapterError(
                f"{where}: the tensor {name[:80]!r} has the unsupported dtype {tensor.dtype}, where"
                " floating-point numbers are needed."
            )
    return dict(table)


def projection_tensors(tables: Tables) -> tuple[str, dict[str, Tensor]]:
    """The kind of image projection, and its tensors under diffusers' names.

    Raises:
        AdapterError: it is of no known kind, or two tensors have one name.
    """
    names = tables.image_proj
    kind = next((kind for kind, marks in _MARKS if any(m in names for m in marks)), None)
    if kind is None:
        raise AdapterError(
            f"{tables.where}: the image projection is of no known kind; it has"
            f" {', '.join(list(names)[:5])[:300]}."
        )
    tensors: dict[str, Tensor] = {}
    for name, tensor in names.items():
        renamed = _renamed(name, _RULES[kind])
        parts = {renamed: tensor}
        if ".to_kv." in renamed and tensor.ndim == 2 and len(tensor) % 2 == 0:
            halves = tensor.chunk(2)
            parts = {
                renamed.replace("to_kv", f"to_{x}"): h for x, h in zip("kv", halves, strict=True)
            }
        if twice := parts.keys() & tensors.keys():
            raise AdapterError(f"{tables.where} has the tensor {min(twice)[:120]!r} twice.")
        tensors |= parts
    return kind, tensors


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in rules:
        name = re.sub(rf"^{pattern}", new, name)
    return name


def layer_tensors(tables: Tables) -> Layers:
    """The second table, by layer."""
    result = Layers({}, {}, [])
    for name, tensor in tables.ip_adapter.items():
        if found := _LAYER.fullmatch(name):
            result.tensors[found[1], found[2]] = tensor
        elif found := _LORA.fullmatch(name):
            result.loras[int(found[1]), found[2], found[3]] = tensor
        else:
            result.unknown.append(name)
    return result
