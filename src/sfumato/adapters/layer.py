"""A layer that computes with adapters: the layer it was, plus what acts on it in this call.

`adapt` changes a layer's class in place and `restore` changes it back, so parameters, names and
``isinstance`` checks stay what they were. The low-rank kind is added to the layer's output, so its
strength may change at any time, and differ from row to row of a batch. The other kinds change the
weight; the changed weight is kept until their strengths change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.adapters.families import LayerAdapter, LowRank
from sfumato.checkpoints.tensors import is_finite
from sfumato.errors import AdapterError, InputError, NumericalError

#: What acts on one layer: adapters and strengths other than 0.
Terms = tuple[tuple[LayerAdapter, float], ...]


@dataclass(frozen=True, eq=False)
class Mix:
    """What acts on a network: terms per layer, and a factor on all of them.

    Attributes:
        layers: path of a layer -> its terms.
        scale: multiplies all strengths.
        bare: look behind fused adapters, at the original weights.
    """

    layers: Mapping[str, Terms] = field(default_factory=dict)
    scale: float = 1.0
    bare: bool = False

    def terms(self, path: str) -> Terms:
        """What acts on one layer."""
        terms = self.layers.get(path, ())
        if self.scale == 1.0:
            return terms
        return tuple((a, s * self.scale) for a, s in terms) if self.scale else ()


#: A mix for each row of a batch. A batch twice as long (guidance) repeats them in the same order.
Rows = tuple[Mix, ...]


class Owner(Protocol):
    """Who knows what acts at present: the network's `AdapterState`."""

    def current(self) -> Mix | Rows: ...


class Slot:
    """What a layer keeps while adapters are loaded for it.

    Attributes:
        owner: knows what acts.
        path: of the layer in its network.
        original: weight and bias from before fusing, the very objects; None when not fused.
        target_rank: low-rank factors are filled up with zeros to this rank (for compiled code,
            which wants fixed shapes); 0 for no filling.
    """

    def __init__(self, owner: Owner, path: str) -> None:
        self.owner = owner
        self.path = path
        self.original: tuple[nn.Parameter, nn.Parameter | None] | None = None
        self.target_rank = 0
        self._factors: dict[tuple[LowRank, torch.dtype, torch.device], _Factors] = {}
        self._changed: dict[Terms, tuple[Tensor, Tensor | None]] = {}
        self._changed_from: tuple[int, int] | None = None

    def forget(self) -> None:
        """Drop everything that was prepared for computing."""
        self._factors.clear()
        self._changed.clear()
        self._changed_from = None

    def forward(self, layer: AdaptedLayer, x: Tensor) -> Tensor:
        mix = self.owner.current()
        if isinstance(mix, Mix):
            return self._uniform(layer, x, mix.terms(self.path), mix.bare)
        return self._by_row(layer, x, mix)

    def _uniform(self, layer: AdaptedLayer, x: Tensor, terms: Terms, bare: bool) -> Tensor:
        if bare and self.original is not None:
            # They may be elsewhere, where somebody moves a layer's parameters one by one.
            here = [None if t is None else t.to(x.device) for t in self.original]
            return layer.compute(x, *here)
        dense = _dense(terms)
        y = layer.compute(x, *self._weights(layer, dense, {dense}))
        for adapter, strength in terms:
            if isinstance(adapter, LowRank):
                y.add_(self._factored(adapter, x).output(layer, x), alpha=strength)
        return y

    def _by_row(self, layer: AdaptedLayer, x: Tensor, rows: Rows) -> Tensor:
        """Row ``i`` of ``x`` with ``rows[i % len(rows)]``."""
        if len(x) % len(rows):
            raise InputError(
                f"Adapters were given for {len(rows)} rows, but the batch has {len(x)}."
            )
        terms = [rows[i % len(rows)].terms(self.path) for i in range(len(x))]
        y = self._dense_by_row(layer, x, [_dense(row) for row in terms])
        adapters = {a: None for row in terms for a, _ in row if isinstance(a, LowRank)}
        for adapter in adapters:
            strengths = [sum(s for a, s in row if a is adapter) for row in terms]
            chosen = [i for i, strength in enumerate(strengths) if strength]
            scale = torch.tensor([strengths[i] for i in chosen], dtype=x.dtype, device=x.device)
            index = torch.tensor(chosen, device=x.device)
            change = self._factored(adapter, x).output(layer, x[index])
            scale = scale.reshape(-1, *[1] * (change.ndim - 1))
            y.index_add_(0, index, change * scale)
        return y

    def _dense_by_row(self, layer: AdaptedLayer, x: Tensor, rows: Sequence[Terms]) -> Tensor:
        kinds = dict.fromkeys(rows)
        if len(kinds) == 1:
            return layer.compute(x, *self._weights(layer, rows[0], set(kinds)))
        parts: list[Tensor] = []
        order: list[int] = []
        for kind in kinds:
            index = [i for i, row in enumerate(rows) if row == kind]
            part = x[torch.tensor(index, device=x.device)]
            parts.append(layer.compute(part, *self._weights(layer, kind, set(kinds))))
            order += index
        back = torch.tensor(order, device=x.device).argsort()
        return torch.cat(parts)[back]

    def _weights(
        self, layer: AdaptedLayer, dense: Terms, keep: set[Terms]
    ) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the terms that are not low-rank; kept while in ``keep``."""
        weight, bias = layer.weight, layer.bias
        if not dense:
            return weight, bias
        version = 0 if weight.is_inference() else weight._version
        if self._changed_from is None or self._changed_from != (id(weight), version):
            self._changed = {}
            self._changed_from = (id(weight), version)
        found = self._changed.get(dense)
        if found is None:
            found = changed(weight, bias, self.originals(layer), dense)
            kept = {terms: value for terms, value in self._changed.items() if terms in keep}
            self._changed = {**kept, dense: found}
        return found

    def originals(self, layer: AdaptedLayer) -> tuple[nn.Parameter, nn.Parameter | None]:
        """Weight and bias without anything fused."""
        return (layer.weight, layer.bias) if self.original is None else self.original

    def _factored(self, adapter: LowRank, x: Tensor) -> _Factors:
        if adapter.down.requires_grad or adapter.up.requires_grad:  # in training
            return _Factors.of(adapter, x.dtype, x.device, self.target_rank)
        key = (adapter, x.dtype, x.device)
        if key not in self._factors:
            self._factors[key] = _Factors.of(adapter, x.dtype, x.device, self.target_rank)
        return self._factors[key]


@dataclass(frozen=True, eq=False)
class _Factors:
    """A `LowRank` ready to compute with: one type and device, the scale multiplied in."""

    down: Tensor
    up: Tensor
    mid: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(
        cls, adapter: LowRank, dtype: torch.dtype, device: torch.device, target_rank: int
    ) -> _Factors:
        wide = torch.promote_types(dtype, torch.float32)
        down = adapter.down.to(device, dtype)
        up = (adapter.up.to(device, wide) * adapter.scale).to(dtype)
        mid = None if adapter.mid is None else adapter.mid.to(device, dtype)
        spare = target_rank - adapter.rank
        if mid is None and spare > 0:
            down = F.pad(down, (0, 0) * (down.ndim - 1) + (0, spare))
            up = F.pad(up, (0, 0) * (up.ndim - 2) + (0, spare))
        bias = adapter.bias_delta(None)
        return cls(down, up, mid, None if bias is None else bias.to(device, dtype))

    def output(self, layer: AdaptedLayer, x: Tensor) -> Tensor:
        """What the adapter adds to the layer's output at strength 1."""
        return layer.compute_low_rank(x, self)


class AdaptedLayer(nn.Module):
    """A layer with a `Slot`; subclasses say how their kind of layer computes."""

    weight: Any
    bias: Any
    slot: Slot

    def forward(self, input: Tensor) -> Tensor:
        return self.slot.forward(self, input)

    def compute(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        """The plain layer, with another weight and bias."""
        raise NotImplementedError

    def compute_low_rank(self, x: Tensor, factors: _Factors) -> Tensor:
        raise AdapterError(f"{type(self).__name__} takes no low-rank adapter")

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """Moving the network moves what fusing has put aside, too."""
        self.slot.forget()
        for parameter in self.slot.original or ():
            if parameter is not None:
                with torch.no_grad():
                    parameter.data = fn(parameter.data)
        return super()._apply(fn, recurse)


class AdaptedLinear(AdaptedLayer, nn.Linear):
    def compute(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.linear(x, weight, bias)

    def compute_low_rank(self, x: Tensor, factors: _Factors) -> Tensor:
        inner = F.linear(x, factors.down.flatten(1))
        if factors.mid is not None:
            inner = F.linear(inner, factors.mid.flatten(1))
        return F.linear(inner, factors.up.flatten(1), factors.bias)


class AdaptedConv2d(AdaptedLayer, nn.Conv2d):
    def compute(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return self._conv_forward(x, weight, bias)

    def compute_low_rank(self, x: Tensor, factors: _Factors) -> Tensor:
        down = factors.down.reshape(len(factors.down), self.in_channels, *self._kernel(factors))
        if factors.mid is None:
            inner = self._conv_forward(x, down, None)
        else:
            inner = self._conv_forward(F.conv2d(x, down), factors.mid, None)
        return F.conv2d(inner, factors.up.flatten(1)[..., None, None], factors.bias)

    def _kernel(self, factors: _Factors) -> tuple[int, ...]:
        return (1, 1) if factors.mid is not None else self.kernel_size


class AdaptedLayerNorm(AdaptedLayer, nn.LayerNorm):
    def compute(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class AdaptedGroupNorm(AdaptedLayer, nn.GroupNorm):
    def compute(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)


#: Kinds of layers that take adapters. A subclass may compute in ways of its own, so it does not.
_ADAPTED: dict[type[nn.Module], type[AdaptedLayer]] = {
    nn.Linear: AdaptedLinear,
    nn.Conv2d: AdaptedConv2d,
    nn.LayerNorm: AdaptedLayerNorm,
    nn.GroupNorm: AdaptedGroupNorm,
}
_PLAIN = {adapted: plain for plain, adapted in _ADAPTED.items()}


def can_adapt(layer: nn.Module) -> bool:
    """Whether the layer takes adapters."""
    weight = getattr(layer, "weight", None)
    return (type(layer) in _ADAPTED or type(layer) in _PLAIN) and isinstance(weight, Tensor)


def adapt(layer: nn.Module, owner: Owner, path: str) -> AdaptedLayer:
    """Make a layer compute with adapters; does nothing to one that does so already."""
    if not isinstance(layer, AdaptedLayer):
        slot = Slot(owner, path)
        layer.__dict__["slot"] = slot
        layer.__class__ = _ADAPTED[type(layer)]
    assert isinstance(layer, AdaptedLayer)
    return layer


def restore(layer: AdaptedLayer) -> None:
    """Make it the plain layer again that it was."""
    plain: Any = _PLAIN[type(layer)]
    layer.__class__ = plain
    del layer.__dict__["slot"]


def drop_factors(layer: AdaptedLayer, kept: Collection[str]) -> None:
    """Remove the parameters of trainable adapters that are not among those kept."""
    for child in ("lora_A", "lora_B"):
        factors = layer._modules.get(child)
        if isinstance(factors, nn.ModuleDict):
            for name in [name for name in factors if name not in kept]:
                del factors[name]
            if not len(factors):
                del layer._modules[child]


@torch.no_grad()
def changed(
    weight: Tensor,
    bias: Tensor | None,
    originals: tuple[Tensor, Tensor | None],
    terms: Terms,
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with the terms added, computed in float32 at least.

    Args:
        weight, bias: what is added to.
        originals: what the adapters' formulas are about; another than ``weight`` when adapters
            are fused into that.
        terms: adapters of any kind and their strengths.

    Raises:
        NumericalError: the result has NaN or infinity.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    base, base_bias = originals[0].to(weight.device, wide), originals[1]
    if base_bias is not None:
        base_bias = base_bias.to(weight.device, wide)
    total, total_bias = weight.to(wide), None if bias is None else bias.to(wide)
    for adapter, strength in terms:
        total = adapter.added(total, base, strength)
        bias_delta = adapter.bias_delta(base_bias)
        if bias_delta is not None:
            bias_delta = bias_delta.to(total.device, wide).flatten()
            start = torch.zeros_like(bias_delta) if total_bias is None else total_bias
            total_bias = start.add(bias_delta, alpha=strength)
    made = total.to(weight.dtype)
    made_bias = None if total_bias is None else total_bias.to(weight.dtype)
    if not (is_finite(made) and (made_bias is None or is_finite(made_bias))):
        raise NumericalError(
            "NaN or infinity in a weight with adapters.", hint="Lower their strength."
        )
    return made, made_bias


def _dense(terms: Terms) -> Terms:
    return tuple(term for term in terms if not isinstance(term[0], LowRank))
