"""From a file's tensors to one adapter per layer.

`sort_tensors` finds out which layer each tensor belongs to, and remembers every key that it could
not place, with the reason. `build_layers` then makes a `LayerAdapter` of each layer's tensors and
checks it against the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sfumato.adapters.families import IA3, DoRA, Full, GLoRA, LayerAdapter, LoHa, LoKr, LowRank
from sfumato.adapters.keys import BUNDLED, split_key
from sfumato.adapters.names import NameTable
from sfumato.adapters.rotations import BOFT, OFT, InputBOFT, InputOFT
from sfumato.checkpoints.tensors import is_finite
from sfumato.errors import AdapterError

#: Tensors of a single number, which some trainers write as an integer.
_NUMBERS = ("alpha", "scalar", "on_input")

#: One layer's tensors by name (see `sfumato.adapters.keys.LEAVES`).
Leaves = dict[str, Tensor]


@dataclass(frozen=True)
class Sorted:
    """A file's tensors by network and layer.

    Attributes:
        networks: network -> path of the layer -> its tensors.
        unknown: key -> why it was left out, in the order of the file.
        embeddings: token -> textual inversion that came along.
    """

    networks: dict[str, dict[str, Leaves]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What a file says about its adapters besides the tensors (PEFT's configuration).

    Attributes:
        alpha: numerator of the scale where the tensors bring none; None for the rank.
        alphas: pattern of a layer's path -> its own alpha.
        rank, ranks: likewise the rank, for PEFT's LoKr: it divides by it where the tensors have
            none.
        root_of_rank: divide by the root of the rank (rank-stabilised LoRA, arXiv:2312.03732).
        cayley_terms: of the series in PEFT's OFT; 0 for the exact map.
        shared_blocks: PEFT's OFT has one block for all.
    """

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank: float | None = None
    ranks: Mapping[str, float] = field(default_factory=dict)
    root_of_rank: bool = False
    cayley_terms: int = 5
    shared_blocks: bool = False

    @classmethod
    def from_metadata(cls, values: Mapping[str, Any]) -> Settings:
        """Read PEFT's names; values of other types than PEFT writes are passed over."""
        alpha, rank = values.get("lora_alpha", values.get("alpha")), values.get("r")
        terms = values.get("num_cayley_neumann_terms", 5)
        series = values.get("use_cayley_neumann", True) is not False
        return cls(
            alpha=float(alpha) if _is_number(alpha) else None,
            alphas=_numbers(values.get("alpha_pattern")),
            rank=float(rank) if _is_number(rank) and rank else None,
            ranks=_numbers(values.get("rank_pattern")),
            root_of_rank=values.get("use_rslora") is True,
            cayley_terms=(int(terms) if _is_number(terms) else 5) if series else 0,
            shared_blocks=values.get("block_share") is True,
        )

    def alpha_of(self, path: str) -> float | None:
        """The alpha of a layer, None where the rank takes its place."""
        return _matching(self.alphas, path, self.alpha)

    def rank_of(self, path: str) -> float | None:
        """The rank of a layer, as far as the file says it."""
        return _matching(self.ranks, path, self.rank)


def sort_tensors(
    state_dict: Mapping[str, Tensor],
    tables: Mapping[str, NameTable],
    alphas: Mapping[str, float] | None = None,
) -> Sorted:
    """Find the layer of each tensor.

    Args:
        state_dict: a file's tensors, in any naming.
        tables: the networks that there are, by name (`"unet"`, `"text_encoder"`).
        alphas: key of a layer -> alpha, as diffusers hands them over beside the tensors.
    """
    result = Sorted()
    for key, tensor in state_dict.items():
        if bundled := BUNDLED.match(key):
            result.embeddings[bundled["token"]] = tensor
            continue
        found = split_key(key)
        if found is None:
            result.unknown[key] = "this is no tensor of an adapter"
            continue
        network, path, reason = _locate(found.network, found.layer, tables)
        if path is None or network is None:
            result.unknown[key] = reason
            continue
        leaves = result.networks.setdefault(network, {}).setdefault(path, {})
        if found.leaf in leaves:
            result.unknown[key] = "the same tensor of the same layer came under another name"
            continue
        leaves[found.leaf] = tensor
    for key, alpha in (alphas or {}).items():
        _place_alpha(result, key, float(alpha), tables)
    _drop_lone_weights(result)
    return result


def _locate(
    network: str | None, layer: str, tables: Mapping[str, NameTable]
) -> tuple[str | None, str | None, str]:
    """Network and path of a layer in the file's spelling, or why there is none."""
    if network is not None and network not in tables:
        return network, None, f"there is no `{network}`"
    for name, table in tables.items():
        if network in (None, name) and (path := table.find(layer)) is not None:
            return name, path, ""
    where = f"`{network}`" if network else " or ".join(f"`{name}`" for name in tables)
    return network, None, f"{where} has no such layer"


def _place_alpha(result: Sorted, key: str, alpha: float, tables: Mapping[str, NameTable]) -> None:
    # diffusers puts `.alpha` behind the layer (`....proj_in.alpha`) or behind one of its tensors
    # (`....to_q_lora.down.weight.alpha`).
    name = key.removesuffix(".alpha")
    found = split_key(name) or split_key(f"{name}.alpha")
    assert found is not None
    network, path, reason = _locate(found.network, found.layer, tables)
    if network is None or path is None or path not in result.networks.get(network, {}):
        result.unknown[key] = reason or "no tensor belongs to it"
    else:
        result.networks[network][path].setdefault("alpha", torch.tensor(alpha))


def _drop_lone_weights(result: Sorted) -> None:
    """A ``weight`` is an adapter only beside an ``on_input``; else it is a network's own."""
    for network, layers in result.networks.items():
        for path, leaves in list(layers.items()):
            if "weight" in leaves and "on_input" not in leaves:
                del leaves["weight"]
                result.unknown[f"{network}.{path}.weight"] = "this is no tensor of an adapter"
            if not leaves:
                del layers[path]
    for network in [n for n, layers in result.networks.items() if not layers]:
        del result.networks[network]


def build_layers(
    tensors: Mapping[str, Leaves],
    shapes: Mapping[str, torch.Size],
    settings: Settings | None = None,
) -> tuple[dict[str, LayerAdapter], dict[str, str]]:
    """One adapter per layer, and the layers that are wrong with the reason.

    Args:
        tensors: path of a layer -> its tensors.
        shapes: path of a layer -> shape of its weight.
        settings: what else the file says.
    """
    layers: dict[str, LayerAdapter] = {}
    wrong: dict[str, str] = {}
    for path, leaves in tensors.items():
        try:
            layers[path] = build_layer(path, leaves, shapes[path], settings or Settings())
        except AdapterError as error:
            wrong[path] = error.message
    return layers, wrong


def build_layer(
    path: str, leaves: Mapping[str, Tensor], shape: torch.Size, settings: Settings
) -> LayerAdapter:
    """The adapter that a layer's tensors describe, for a weight of that shape.

    Raises:
        AdapterError: when tensors are missing, of two kinds at once, not finite, or do not fit.
    """
    for name, tensor in leaves.items():
        integer = not tensor.is_floating_point() and not tensor.is_complex()
        if not tensor.is_floating_point() and not (integer and name in _NUMBERS):
            raise AdapterError(f"{name} has the unsupported dtype {tensor.dtype}")
        if not is_finite(tensor):
            raise AdapterError(f"{name} holds NaN or infinite numbers")
    rest = dict(leaves)
    take = _Taker(rest, path, settings)
    kinds = [build for names, build in _FAMILIES.items() if any(n in rest for n in names)]
    if len(kinds) != 1:
        what = "no known kind of adapter" if not kinds else f"{len(kinds)} kinds of adapter at once"
        raise AdapterError(f"{', '.join(sorted(rest))}: {what}")
    adapter = _with_magnitude(kinds[0](take), take, shape)
    if rest:
        raise AdapterError(f"{', '.join(sorted(rest))} left over beside {adapter.family}")
    if len(shape) < 2 and not isinstance(adapter, Full):
        raise AdapterError(f"a norm takes no {adapter.family}")
    adapter.check(shape)
    return adapter


def _with_magnitude(adapter: LayerAdapter, take: _Taker, shape: torch.Size) -> LayerAdapter:
    """The adapter, inside of a DoRA if the file has magnitudes.

    PEFT has one per output, on convolutions as ``(1, out, 1, 1)``. LyCORIS has ``(out, 1, ...)``,
    or one per input as ``(1, in, ...)``.
    """
    magnitude, per_output = take.optional("lora_magnitude_vector"), True
    if magnitude is None:
        magnitude = take.optional("dora_scale")
        if magnitude is None:
            return adapter
        per_output = magnitude.shape[:1] == shape[:1] or magnitude.numel() != shape[1:2].numel()
    if not isinstance(adapter, LowRank | LoHa | LoKr):
        raise AdapterError(f"magnitudes (dora_scale) do not go with {adapter.family}")
    return DoRA(inner=adapter, magnitude=magnitude, per_output=per_output)


class _Taker:
    """Hands out a layer's tensors, so that what is left at the end is known."""

    def __init__(self, rest: dict[str, Tensor], path: str, settings: Settings) -> None:
        self.rest, self.path, self.settings = rest, path, settings

    def optional(self, name: str) -> Tensor | None:
        return self.rest.pop(name, None)

    def __call__(self, name: str) -> Tensor:
        tensor = self.rest.pop(name, None)
        if tensor is None:
            raise AdapterError(
                f"{name} is missing beside {', '.join(sorted(self.rest)) or 'others'}"
            )
        return tensor

    def number(self, name: str) -> float | None:
        tensor = self.optional(name)
        if tensor is not None and tensor.numel() != 1:
            raise AdapterError(f"{name} has the shape {list(tensor.shape)}, not one number")
        return None if tensor is None else float(tensor)

    def scale(self, factor: Tensor | None) -> float:
        """alpha / rank; the rank is the rows of ``factor``, None for a family without."""
        alpha, scalar = self.number("alpha"), self.number("scalar")
        scalar = 1.0 if scalar is None else scalar
        if factor is None:  # LyCORIS ignores an alpha then, PEFT does not
            given, rank = self.settings.alpha_of(self.path), self.settings.rank_of(self.path)
            return scalar if alpha is not None or given is None or not rank else given / rank
        if alpha is None:
            alpha = self.settings.alpha_of(self.path)
        if alpha is None:
            return scalar
        if alpha == 0:
            raise AdapterError("alpha is 0, so the layer would have no effect")
        rank = factor.shape[0] if factor.ndim else 0
        if not rank:
            raise AdapterError("the rank is 0")
        return alpha / (rank**0.5 if self.settings.root_of_rank else rank) * scalar


def _low_rank(take: _Taker) -> LowRank:
    down, up = take("lora_A.weight"), take("lora_B.weight")
    return LowRank(
        down=down,
        up=up,
        mid=take.optional("lora_mid.weight"),
        scale=take.scale(down),
        down_bias=take.optional("lora_A.bias"),
        up_bias=take.optional("lora_B.bias"),
    )


def _loha(take: _Taker) -> LoHa:
    w1_b = take("hada_w1_b")
    return LoHa(
        w1_a=take("hada_w1_a"),
        w1_b=w1_b,
        w2_a=take("hada_w2_a"),
        w2_b=take("hada_w2_b"),
        t1=take.optional("hada_t1"),
        t2=take.optional("hada_t2"),
        scale=take.scale(w1_b),
    )


def _lokr(take: _Taker) -> LoKr:
    parts = {
        name: take.optional(f"lokr_{name}")
        for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    }
    for n in ("w1", "w2"):
        if parts[n] is not None and parts[f"{n}_a"] is not None:
            raise AdapterError(f"lokr_{n} is there whole and in factors")
    factor = parts["w2_b"] if parts["w2_b"] is not None else parts["w1_b"]
    return LoKr(**parts, scale=take.scale(factor))


def _full(take: _Taker) -> Full:
    take.number("alpha")  # some trainers write one everywhere; it has no meaning here
    return Full(weight=take.optional("diff"), bias=take.optional("diff_b"))


def _norm(take: _Taker) -> Full:
    return Full(weight=take.optional("w_norm"), bias=take.optional("b_norm"))


def _ia3(take: _Taker) -> IA3:
    return IA3(factors=take("weight"), on_input=bool(take.number("on_input")))


def _peft_ia3(take: _Taker) -> IA3:
    # PEFT multiplies by the factors themselves: (1, in) before a layer, (out, 1) after it. On
    # convolutions both are (1, channels, 1, 1), and their outputs are the usual place.
    factors = take("ia3_l")
    before = factors.ndim == 2 and factors.shape[0] == 1
    return IA3(factors=factors.float() - 1, on_input=before, with_bias=True)


def _glora(take: _Taker) -> GLoRA:
    a1, a2, b1, b2 = (take(f"{name}.weight") for name in ("a1", "a2", "b1", "b2"))
    if min(t.ndim for t in (a1, a2, b1, b2)) < 2:
        raise AdapterError("a factor of GLoRA is no matrix")
    if a2.shape[0] > a2.shape[1]:  # (in, rank) rather than (rank, in): the first version's order
        a1, a2, b1, b2 = a2, a1, b2, b1
    return GLoRA(a1=a1, a2=a2, b1=b1, b2=b2, bm=take.optional("bm.weight"), scale=take.scale(a2))


def _rotation(take: _Taker) -> LayerAdapter:
    blocks, rescale = take("oft_blocks"), take.optional("rescale")
    constraint = take.number("alpha") or 0.0
    if blocks.ndim == 4:
        return BOFT(blocks=blocks, rescale=rescale, constraint=constraint)
    return OFT(blocks=blocks, rescale=rescale, constraint=constraint)


def _rotated(take: _Taker) -> OFT:
    blocks, rescale = take("oft_diag"), take.optional("rescale")
    take.number("alpha")  # written, but without meaning for finished rotations
    return OFT(blocks=blocks, rescale=rescale, rotated=True)


def _input_rotation(take: _Taker) -> InputOFT:
    vectors = take("oft_R.weight")
    entries = vectors.shape[-1] if vectors.ndim else 0
    size = round((1 + (1 + 8 * entries) ** 0.5) / 2)
    shared = take.settings.shared_blocks
    return InputOFT(vectors=vectors, size=size, terms=take.settings.cayley_terms, shared=shared)


def _input_butterfly(take: _Taker) -> InputBOFT:
    return InputBOFT(blocks=take("boft_R"), factors=take.optional("boft_s"))


#: Names of tensors that tell a family, and how to build it.
_FAMILIES: dict[tuple[str, ...], Callable[[_Taker], LayerAdapter]] = {
    ("lora_A.weight", "lora_B.weight"): _low_rank,
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"): _loha,
    ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"): _lokr,
    ("diff", "diff_b"): _full,
    ("w_norm", "b_norm"): _norm,
    ("weight",): _ia3,
    ("ia3_l",): _peft_ia3,
    ("a1.weight", "a2.weight", "b1.weight", "b2.weight"): _glora,
    ("oft_blocks",): _rotation,
    ("oft_diag",): _rotated,
    ("oft_R.weight",): _input_rotation,
    ("boft_R",): _input_butterfly,
}


def _matching(values: Mapping[str, float], path: str, default: float | None) -> float | None:
    """The value of the first of PEFT's patterns (paths or their ends) that means this path."""
    for pattern, value in values.items():
        name = pattern.removeprefix("^")
        if path == name or (name == pattern and path.endswith(f".{name}")):
            return value
    return default


def _numbers(values: object) -> dict[str, float]:
    if not isinstance(values, Mapping):
        return {}
    return {str(key): float(value) for key, value in values.items() if _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
