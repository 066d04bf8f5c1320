"""What each kind of adapter does to a layer's weight: the published formulas, and nothing else.

Every adapter is applied as ``W' = W + strength * weight_delta(W)``, and the same for the bias, so
strength 0 leaves the layer alone and strengths of several adapters add up. ``weight`` is always the
layer's own, untouched weight: ``(out, in)`` for linear layers, ``(out, in, kh, kw)`` for
convolutions, ``(channels,)`` for norms. Results have its dtype, so callers choose the precision.

Rotations (OFT and BOFT) are in `sfumato.adapters.rotations`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from sfumato.errors import AdapterError


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerAdapter:
    """What one adapter does to one layer. Subclasses hold the tensors of the file as they are."""

    family: ClassVar[str]

    def weight_delta(self, weight: Tensor) -> Tensor | None:
        """The change of the weight at strength 1, or None for none."""
        return None

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        """The change of the bias at strength 1, ``(out,)``, or None for none."""
        return None

    def added(self, total: Tensor, weight: Tensor, strength: float) -> Tensor:
        """``total + strength * weight_delta(weight)``, a new tensor unless there is no change."""
        delta = self.weight_delta(weight)
        return total if delta is None else total.add(delta, alpha=strength)

    def check(self, shape: torch.Size) -> None:
        """Raise `AdapterError` when the tensors do not fit each other, or a weight of ``shape``."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRank(LayerAdapter):
    """LoRA (arXiv:2106.09685), LoCon on convolutions, and LoCon's CP form with a middle factor.

    Attributes:
        down: ``(rank, in)`` or ``(rank, in, kh, kw)``; with ``mid`` ``(rank, in, 1, 1)``.
        up: ``(out, rank)`` or ``(out, rank, 1, 1)``.
        mid: ``(rank of up, rank of down, kh, kw)`` or None.
        scale: alpha / rank.
        down_bias, up_bias: ``(rank,)`` and ``(out,)``, the biases of both maps.
    """

    family: ClassVar[str] = "lora"
    down: Tensor
    up: Tensor
    mid: Tensor | None = None
    scale: float = 1.0
    down_bias: Tensor | None = None
    up_bias: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def weight_delta(self, weight: Tensor) -> Tensor:
        up, down = _rows(self.up, weight), _rows(self.down, weight)
        if self.mid is None:
            product = up @ down
        else:
            product = torch.einsum("mn...,im,nj->ij...", like(self.mid, weight), up, down)
        return product.reshape(weight.shape) * self.scale

    def added(self, total: Tensor, weight: Tensor, strength: float) -> Tensor:
        if self.mid is not None:
            return super().added(total, weight, strength)
        # One pass over the weight, where the sum of a product would take three.
        up, down = _rows(self.up, weight), _rows(self.down, weight)
        result = torch.addmm(total.flatten(1), up, down, alpha=strength * self.scale)
        return result.reshape(weight.shape)

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        total = None if self.up_bias is None else self.up_bias.float() * self.scale
        if self.down_bias is not None:
            through = self.up.flatten(1).float() @ self.down_bias.float() * self.scale
            total = through if total is None else total + through
        return total

    def check(self, shape: torch.Size) -> None:
        columns = shape[1] if self.mid is not None else shape[1:].numel()
        _fit("up", self.up, shape[0], None)
        _fit("down", self.down, None, columns)
        inner = (self.up.shape[1], self.down.shape[0])
        if self.mid is not None:
            if self.mid.shape != (*inner, *shape[2:]):
                raise AdapterError(
                    f"the middle factor has the shape {list(self.mid.shape)}, but "
                    f"{[*inner, *shape[2:]]} is needed"
                )
        elif inner[0] != inner[1]:
            raise AdapterError(f"rank mismatch: up has rank {inner[0]} but down {inner[1]}")
        for name, bias, size in (
            ("up", self.up_bias, shape[0]),
            ("down", self.down_bias, self.rank),
        ):
            if bias is not None and bias.numel() != size:
                raise AdapterError(f"the bias of {name} has {bias.numel()} numbers, not {size}")


@dataclass(frozen=True, eq=False, kw_only=True)
class LoHa(LayerAdapter):
    """Hadamard product of two low-rank matrices (arXiv:2108.06098, FedPara).

    Attributes:
        w1_a, w1_b, w2_a, w2_b: ``(out, rank)`` and ``(rank, in * kh * kw)``; with cores, the
            transposed ``(rank, out)`` and ``(rank, in)``.
        t1, t2: cores ``(rank, rank, kh, kw)`` of the form for convolutions, or None.
        scale: alpha / rank.
    """

    family: ClassVar[str] = "loha"
    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    t1: Tensor | None = None
    t2: Tensor | None = None
    scale: float = 1.0

    def weight_delta(self, weight: Tensor) -> Tensor:
        first = _product(self.w1_a, self.w1_b, self.t1, weight)
        second = _product(self.w2_a, self.w2_b, self.t2, weight)
        return (first * second).reshape(weight.shape) * self.scale

    def check(self, shape: torch.Size) -> None:
        for n, a, b, t in ((1, self.w1_a, self.w1_b, self.t1), (2, self.w2_a, self.w2_b, self.t2)):
            rows, columns = _product_shape(f"hada_w{n}", a, b, t)
            if rows != shape[0] or columns != shape[1:].numel():
                raise AdapterError(f"hada_w{n} makes {[rows, columns]}, not {_flat(shape)}")


@dataclass(frozen=True, eq=False, kw_only=True)
class LoKr(LayerAdapter):
    """Kronecker product of two matrices, each whole or of low rank (arXiv:2309.14859, LyCORIS).

    Attributes:
        w1: ``(out1, in1)``, or None with ``w1_a @ w1_b`` in its place.
        w2: ``(out2, in2)`` or ``(out2, in2, kh, kw)``, or None with ``w2_a @ w2_b`` in its place.
        t2: core ``(rank, rank, kh, kw)``; ``w2_a`` and ``w2_b`` are then ``(rank, out2)`` and
            ``(rank, in2)``.
        scale: alpha / rank; 1 when both matrices are whole.
    """

    family: ClassVar[str] = "lokr"
    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    scale: float = 1.0

    def weight_delta(self, weight: Tensor) -> Tensor:
        first = self._half(self.w1, self.w1_a, self.w1_b, None, weight)
        second = self._half(self.w2, self.w2_a, self.w2_b, self.t2, weight)
        product = torch.kron(first.contiguous(), second.contiguous())  # or it may fail
        return product.reshape(weight.shape) * self.scale

    def _half(
        self, whole: Tensor | None, a: Tensor | None, b: Tensor | None, t: Tensor | None, w: Tensor
    ) -> Tensor:
        if whole is not None:
            return _rows(whole, w)
        assert a is not None and b is not None
        return _product(a, b, t, w).flatten(1)

    def check(self, shape: torch.Size) -> None:
        sizes = []
        halves = (
            (1, self.w1, self.w1_a, self.w1_b, None),
            (2, self.w2, self.w2_a, self.w2_b, self.t2),
        )
        for n, whole, a, b, t in halves:
            if whole is None and (a is None or b is None):
                raise AdapterError(f"lokr_w{n} is missing, or one of lokr_w{n}_a and lokr_w{n}_b")
            if whole is None:
                assert a is not None and b is not None
                sizes.append(_product_shape(f"lokr_w{n}", a, b, t))
            elif whole.ndim < 2:
                raise AdapterError(f"lokr_w{n} has the shape {list(whole.shape)}")
            else:
                sizes.append((whole.shape[0], whole.shape[1:].numel()))
        made = [sizes[0][0] * sizes[1][0], sizes[0][1] * sizes[1][1]]
        if made != _flat(shape):
            raise AdapterError(f"the Kronecker product is {made}, not {_flat(shape)}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Full(LayerAdapter):
    """The change itself, in full: ``diff`` and ``diff_b``, or ``w_norm`` and ``b_norm``."""

    family: ClassVar[str] = "full"
    weight: Tensor | None = None
    bias: Tensor | None = None

    def weight_delta(self, weight: Tensor) -> Tensor | None:
        return None if self.weight is None else like(self.weight, weight).reshape(weight.shape)

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        return self.bias

    def check(self, shape: torch.Size) -> None:
        if self.weight is not None and (
            self.weight.numel() != shape.numel() or self.weight.shape[:1] != shape[:1]
        ):
            raise AdapterError(
                f"the change has the shape {list(self.weight.shape)}, not {list(shape)}"
            )
        if self.bias is not None and self.bias.numel() != shape[0]:
            raise AdapterError(f"the bias's change has {self.bias.numel()} numbers, not {shape[0]}")


@dataclass(frozen=True, eq=False, kw_only=True)
class IA3(LayerAdapter):
    """One factor per channel (arXiv:2205.05638): ``delta = W * factors``.

    Attributes:
        factors: one number per input or output channel, in any shape; 0 changes nothing.
        on_input: along the weight's input rather than its output channels.
        with_bias: the output's factors act on the bias too.
    """

    family: ClassVar[str] = "ia3"
    factors: Tensor
    on_input: bool
    with_bias: bool = False

    def weight_delta(self, weight: Tensor) -> Tensor:
        axis = 1 if self.on_input else 0
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        return weight * like(self.factors, weight).reshape(shape)

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        if bias is None or self.on_input or not self.with_bias:
            return None
        return bias * like(self.factors, bias).flatten()

    def check(self, shape: torch.Size) -> None:
        axis = 1 if self.on_input else 0
        if len(shape) < 2 or self.factors.numel() != shape[axis]:
            side = "input" if self.on_input else "output"
            raise AdapterError(
                f"{self.factors.numel()} factors do not fit the {side} of a weight {list(shape)}"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class GLoRA(LayerAdapter):
    """``W A + B`` with two low-rank matrices (arXiv:2306.07967), as LyCORIS writes it.

    Attributes:
        a1, a2: ``A = a1 @ a2``, ``(in, rank)`` and ``(rank, in)``.
        b1, b2: ``B = b1 @ b2``, ``(out, rank)`` and ``(rank, in * kh * kw)``.
        bm: a middle factor of B, as in `LowRank`, or None.
        scale: alpha / rank.

    Files of the first version hold the factors the other way round (``A = a2 @ a1``); `parse`
    turns them.
    """

    family: ClassVar[str] = "glora"
    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor
    bm: Tensor | None = None
    scale: float = 1.0

    def weight_delta(self, weight: Tensor) -> Tensor:
        a = _rows(self.a1, weight) @ _rows(self.a2, weight)
        through = torch.einsum("oi...,ij->oj...", weight, a)
        return (through + self._plain().weight_delta(weight)) * self.scale

    def _plain(self) -> LowRank:
        return LowRank(down=self.b2, up=self.b1, mid=self.bm)

    def check(self, shape: torch.Size) -> None:
        _fit("a1", self.a1, shape[1], self.a2.shape[0])
        _fit("a2", self.a2, self.a2.shape[0], shape[1])
        self._plain().check(shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class DoRA(LayerAdapter):
    """A change of direction, with magnitudes of its own (arXiv:2402.09353, equation 5).

    ``W' = magnitude * V / |V|`` with ``V = W + delta(W)`` of the adapter inside, at its strength 1.
    The norm is that of V, as in the paper, PEFT and LyCORIS; ComfyUI takes that of W per output.

    Attributes:
        inner: the change of direction.
        magnitude: one number per channel, in any shape.
        per_output: norms of the rows of V (one per output channel) rather than of its columns.
    """

    family: ClassVar[str] = "dora"
    inner: LayerAdapter
    magnitude: Tensor
    per_output: bool = True

    def weight_delta(self, weight: Tensor) -> Tensor:
        change = self.inner.weight_delta(weight)
        assert change is not None
        merged = weight + change
        axes = [i for i in range(weight.ndim) if i != (0 if self.per_output else 1)]
        norm = torch.linalg.vector_norm(merged, dim=axes, keepdim=True)
        magnitude = like(self.magnitude, weight).reshape(norm.shape)
        return merged * (magnitude / norm.clamp_min(torch.finfo(norm.dtype).tiny)) - weight

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        return self.inner.bias_delta(bias)

    def check(self, shape: torch.Size) -> None:
        self.inner.check(shape)
        size = shape[0] if self.per_output else shape[1]
        if self.magnitude.numel() != size:
            raise AdapterError(
                f"the magnitude (dora_scale) has {self.magnitude.numel()} numbers, not {size}"
            )


def on_device(adapter: LayerAdapter, device: torch.device | str | int) -> LayerAdapter:
    """The adapter with its tensors on a device; itself while its tensors are being trained."""
    parts = {f.name: getattr(adapter, f.name) for f in fields(adapter)}
    if any(isinstance(part, nn.Parameter) for part in parts.values()):
        return adapter
    moved = {
        name: on_device(part, device) if isinstance(part, LayerAdapter) else part.to(device)
        for name, part in parts.items()
        if isinstance(part, LayerAdapter | Tensor)
    }
    return replace(adapter, **moved)


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor on the device and in the dtype of another; itself where it is so already."""
    return tensor.to(device=other.device, dtype=other.dtype)


def _rows(tensor: Tensor, other: Tensor) -> Tensor:
    """As a matrix, one row per entry of the first axis."""
    return like(tensor, other).flatten(1)


def _product(a: Tensor, b: Tensor, core: Tensor | None, other: Tensor) -> Tensor:
    """``a @ b``, or both contracted with a core ``(rank a, rank b, kh, kw)``."""
    if core is None:
        return _rows(a, other) @ _rows(b, other)
    return torch.einsum("ij...,ip,jr->pr...", *(like(t, other) for t in (core, a, b)))


def _product_shape(name: str, a: Tensor, b: Tensor, core: Tensor | None) -> tuple[int, int]:
    """Rows and columns of `_product`, when the factors fit each other."""
    if a.ndim < 2 or b.ndim < 2:
        raise AdapterError(f"{name}_a or {name}_b is no matrix")
    if core is None:
        if a.shape[1:].numel() != b.shape[0]:
            raise AdapterError(
                f"rank mismatch: {name}_a is {list(a.shape)} but {name}_b {list(b.shape)}"
            )
        return a.shape[0], b.shape[1:].numel()
    if core.ndim < 2 or core.shape[:2] != (a.shape[0], b.shape[0]) or a.ndim != 2 or b.ndim != 2:
        raise AdapterError(f"rank mismatch: the core of {name} is {list(core.shape)}")
    return a.shape[1], b.shape[1] * core.shape[2:].numel()


def _fit(name: str, tensor: Tensor, rows: int | None, columns: int | None) -> None:
    """Raise unless the tensor is a matrix of that size; None is for the rank, whatever it is."""
    found = _flat(tensor.shape) if tensor.ndim > 1 else [0, 0]
    rank = tensor.shape[1:2].numel()
    wanted = [found[0] if rows is None else rows, rank if columns is None else columns]
    if found != wanted or 0 in found:
        sizes = ["rank" if n is None else n for n in (rows, columns)]
        raise AdapterError(
            f"{name} has the shape {list(tensor.shape)}, but [{sizes[0]}, {sizes[1]}] is needed"
        )


def _flat(shape: torch.Size) -> list[int]:
    return [shape[0], shape[1:].numel()]
