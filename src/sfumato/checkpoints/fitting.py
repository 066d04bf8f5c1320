"""Joining a network and its weights: built without memory, compared by name and shape, assigned.

Nothing is copied: the network is built without memory for its parameters, and takes the tensors
that were read (or mapped) as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sfumato.checkpoints.comparison import Shape, compare
from sfumato.errors import CheckpointError
from sfumato.models.legacy import rename_legacy_keys

ModelT = TypeVar("ModelT", bound=nn.Module)


class _WithoutMemory(TorchFunctionMode):
    """Layers make their parameters with `torch.empty`; inside, those take no memory.

    Other factories work as always, so a buffer such as a range of positions is there at once.
    Random parameters are made without memory too, and leave the random generator alone.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.randn, torch.rand) and kwargs.get("device") is None:
            func, kwargs = torch.empty, {**kwargs, "device": "meta"}
            kwargs.pop("generator", None)
        if getattr(func, "__module__", None) == "torch.nn.init":
            tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if tensor.is_meta:  # nothing to fill; trying takes torch's compiler, a second to import
                return tensor
        return func(*args, **kwargs)


def build_without_memory(model_class: Callable[[Any], ModelT], config: Any) -> ModelT:
    """The network of a configuration in eval mode, with parameters on the meta device."""
    with _WithoutMemory():
        return model_class(config).eval()


def check_fit(model: nn.Module, shapes: Mapping[str, Shape], where: str) -> None:
    """Compare a file's names and shapes with the network's; see `comparison.compare`.

    Raises:
        WeightsMismatchError: names are missing or shapes differ.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    compare(expected, shapes, where, type(model).__name__, tied_names(model))


def assign(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Make the tensors the network's parameters and buffers, without copying them.

    Call `check_fit` first. Parameters that are one object in the network stay one.

    Raises:
        CheckpointError: integers where the network has floating-point numbers.
    """
    expected = model.state_dict()
    renamed = rename_legacy_keys(tensors)
    state = {name: tensor for name, tensor in renamed.items() if name in expected}
    for name, tensor in state.items():
        if expected[name].is_floating_point() != tensor.is_floating_point():
            raise CheckpointError(
                f"{where}: tensor {name!r} has the unsupported dtype {tensor.dtype}, where "
                "floating-point numbers are needed.",
                hint="Quantised files cannot be loaded; get one in 16-bit or 32-bit.",
            )
    groups = tied_names(model)
    for group in groups:
        present = next(name for name in group if name in state)
        state |= dict.fromkeys(group, state[present])
    model.load_state_dict(state, strict=True, assign=True)
    for group in groups:
        parameter = model.get_parameter(group[0])
        for name in group[1:]:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, parameter)


def tied_names(model: nn.Module) -> list[list[str]]:
    """Groups of names under which the network holds one and the same parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]
