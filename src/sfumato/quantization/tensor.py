"""A weight that is kept quantised and looks like any other tensor.

Layers stay what they are, `nn.Linear` and `nn.Conv2d`, and their weight stays a parameter of the
same name and shape; only the functions that compute with it, ``linear`` and ``conv2d``, do so
differently. So adapters beside the weight, and whatever else calls these functions, work as ever.
All other functions see the plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from sfumato.runtime import layer_kernels
from sfumato.runtime.kernels import computing

_aten = torch.ops.aten
#: Functions that leave the numbers as they are: their result is quantised too.
_KEEPING = (_aten.detach.default, _aten.clone.default, _aten.alias.default, _aten._to_copy.default)


class QuantizedTensor(Tensor):
    """Base of all kinds of quantised weights.

    A subclass keeps its numbers in ordinary tensors, whose names are in ``part_names``, and says
    how to compute with them. ``shape`` is that of the weight, ``dtype`` the one that its numbers
    have for functions which know nothing of quantisation.
    """

    part_names: ClassVar[tuple[str, ...]]

    @staticmethod
    def __new__(
        cls: type, shape: Sequence[int], dtype: torch.dtype, device: torch.device, **_: Any
    ) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=dtype, device=device, requires_grad=False
        )

    def plain(self, dtype: torch.dtype | None = None) -> Tensor:
        """The numbers as an ordinary tensor; default of the tensor's own dtype."""
        raise NotImplementedError

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What `torch.nn.functional.linear` does."""
        return plain_linear(x, self.plain(x.dtype), bias)

    def convolve(
        self, x: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        """What `torch.nn.functional.conv2d` does."""
        return plain_conv2d(x, self.plain(x.dtype), bias, stride, padding, dilation, groups)

    def with_inner(
        self, inner: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> Self:
        """The same weight made of other inner tensors."""
        raise NotImplementedError

    def parts(self) -> dict[str, Tensor]:
        """The tensors that it is made of, by name."""
        return {name: getattr(self, name) for name in self.part_names}

    @property
    def stored_bytes(self) -> int:
        """The memory that it takes."""
        return sum(part.nbytes for part in self.parts().values())

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype})"

    # What makes torch move it like any parameter.

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return list(self.part_names), self.dtype

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func is F.conv2d:
            return _conv2d(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():  # on to `__torch_dispatch__`
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _KEEPING and isinstance(args[0], QuantizedTensor):
            dtype, device = kwargs.get("dtype"), kwargs.get("device")
            if dtype is None or dtype.is_floating_point:
                return _moved(args[0], dtype, device, copied=func is _aten.clone.default)
        return func(*tree_map(plain, tuple(args)), **tree_map(plain, dict(kwargs)))


def plain(value: Any) -> Any:
    """A quantised tensor's numbers; anything else as it is."""
    return value.plain() if isinstance(value, QuantizedTensor) else value


def stored(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The tensors that lie in memory: of quantised ones, what they are made of."""
    for tensor in tensors:
        if isinstance(tensor, QuantizedTensor):
            yield from tensor.parts().values()
        else:
            yield tensor


# What has come here from inside `kernels.active` does not pass there again by itself.


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of plain numbers, through the compiled kernels where a network uses them."""
    made = layer_kernels.linear(x, weight, bias) if computing() else None
    return F.linear(x, weight, bias) if made is None else made


def plain_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """The same for a convolution; ``rest`` is stride, padding, dilation and groups."""
    made = layer_kernels.convolve(x, weight, bias, *rest) if computing() else None
    return F.conv2d(x, weight, bias, *rest) if made is None else made


def _moved(weight: QuantizedTensor, dtype: Any, device: Any, *, copied: bool) -> QuantizedTensor:
    device = weight.device if device is None else torch.device(device)
    inner = {
        name: part.clone() if copied else part.to(device) for name, part in weight.parts().items()
    }
    return weight.with_inner(inner, dtype or weight.dtype, device)


def _learning(x: Tensor) -> bool:
    """Gradients flow through ordinary functions only."""
    return torch.is_grad_enabled() and x.requires_grad


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not isinstance(weight, QuantizedTensor) or isinstance(input, QuantizedTensor):
        return F.linear(plain(input), plain(weight), plain(bias))
    if _learning(input):
        return F.linear(input, weight.plain(input.dtype), bias)
    return weight.linear(input, bias)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if not isinstance(weight, QuantizedTensor) or isinstance(input, QuantizedTensor):
        numbers = plain(input), plain(weight), plain(bias)
        return F.conv2d(*numbers, stride, padding, dilation, groups)
    if _learning(input):
        return F.conv2d(input, weight.plain(input.dtype), bias, stride, padding, dilation, groups)
    return weight.convolve(input, bias, stride, padding, dilation, groups)
