"""Networks that wait in main memory and visit the accelerator only while they run.

Two grains: whole networks (`ModelOffload`: fast, as much accelerator memory as the largest
network) and layers (`LayerOffload`: slow, some 100 MB). Both are forward hooks on ordinary
modules; nothing about the networks changes.

On a machine without accelerator the same two grains save main memory: weights wait in their files,
and the memory of those that have done their work is given back (`ModelRelease`, `LayerRelease`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sfumato.errors import InputError
from sfumato.quantization.tensor import stored
from sfumato.runtime import pages

#: A network is moved in units of at most this size, where its structure allows.
UNIT_BYTES = 128 * 2**20


def offload_device(gpu_id: int | None, device: torch.device | str | None) -> torch.device | None:
    """The accelerator that is meant, or None when this machine has none.

    Raises:
        InputError: when the accelerator's number is given twice.
    """
    given = torch.device(device) if device is not None else None
    if gpu_id is not None and given is not None and given.index is not None:
        raise InputError(
            f"You have passed both `gpu_id`={gpu_id} and an index as part of the passed device"
            f" `device`={device}. Cannot pass both.",
            hint="Leave out one of them.",
        )
    present = torch.accelerator.current_accelerator(check_available=True)
    if present is None or (given is not None and given.type == "cpu"):
        return None
    kind = given.type if given is not None else present.type
    index = gpu_id if gpu_id is not None else (given.index if given is not None else None)
    return torch.device(kind, index or 0)


class Offload:
    """Hooks on a pipeline's networks that a `release` empties and a `remove` takes away."""

    #: Whether single layers move, so that moving a whole network would break the hooks.
    by_layer = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._handles: list[RemovableHandle] = []

    def release(self) -> None:
        """Send everything back to main memory."""

    def remove(self) -> None:
        """Take the hooks away; the networks are in main memory then."""
        self.release()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class ModelOffload(Offload):
    """One network at a time on the accelerator.

    Args:
        device: the accelerator.
        chain: networks that run one after another; a call of one sends the others back.
        others: networks that come when called, and stay until `release`.
    """

    def __init__(
        self, device: torch.device, chain: Iterable[nn.Module], others: Iterable[nn.Module] = ()
    ) -> None:
        super().__init__(device)
        self._chain = list(chain)
        self._present: list[nn.Module] = []
        for network in (*self._chain, *others):
            # An autoencoder is used through `encode` and `decode`, which call its children.
            for module in (network, *network.children()):
                self._handles.append(module.register_forward_pre_hook(self._hook(network)))

    def _hook(self, network: nn.Module) -> Any:
        def bring(*_: Any) -> None:
            if any(network is present for present in self._present):
                return
            if any(network is link for link in self._chain):
                self._send_back([m for m in self._present if any(m is n for n in self._chain)])
            self._bring(network)
            self._present.append(network)

        return bring

    def _bring(self, network: nn.Module) -> None:
        network.to(self.device)

    def _put_away(self, network: nn.Module) -> None:
        network.to("cpu")

    def _send_back(self, networks: list[nn.Module]) -> None:
        for network in networks:
            self._put_away(network)
        self._present = [m for m in self._present if not any(m is n for n in networks)]

    def release(self) -> None:
        self._send_back(list(self._present))


class LayerOffload(Offload):
    """One unit of a network at a time on the accelerator; the weights stay in main memory.

    Args:
        device: the accelerator.
        networks: the networks, wholly in main memory.
        unit_bytes: the size up to which neighbouring layers move together.
    """

    by_layer = True

    def __init__(
        self, device: torch.device, networks: Iterable[nn.Module], unit_bytes: int = UNIT_BYTES
    ) -> None:
        super().__init__(device)
        for network in networks:
            for modules in _units(network, unit_bytes):
                unit = self._unit(modules)
                for module in modules:
                    self._handles.append(module.register_forward_pre_hook(unit.enter))
                    self._handles.append(module.register_forward_hook(unit.leave, always_call=True))

    def _unit(self, modules: list[nn.Module]) -> _Unit:
        return _Unit(modules, self.device)


class ModelRelease(ModelOffload):
    """The weights of one network at a time in main memory; arguments as for `ModelOffload`."""

    def __init__(self, chain: Iterable[nn.Module], others: Iterable[nn.Module] = ()) -> None:
        networks, rest = list(chain), list(others)
        super().__init__(torch.device("cpu"), networks, rest)
        wait_in_files([*networks, *rest])

    def _bring(self, network: nn.Module) -> None:
        pass  # the system reads the pages that are used

    def _put_away(self, network: nn.Module) -> None:
        pages.give_back(_tensors([network]))


class LayerRelease(LayerOffload):
    """The weights of one unit at a time in main memory; arguments as for `LayerOffload`."""

    by_layer = False

    def __init__(self, networks: Iterable[nn.Module], unit_bytes: int = UNIT_BYTES) -> None:
        held = list(networks)
        super().__init__(torch.device("cpu"), held, unit_bytes)
        wait_in_files(held)

    def _unit(self, modules: list[nn.Module]) -> _Unit:
        return _PageUnit(modules, self.device)


def wait_in_files(networks: Iterable[nn.Module]) -> None:
    """Let the weights of networks wait in files; see `sfumato.runtime.pages.wait_in_files`."""
    pages.wait_in_files(_tensors(networks))


def _tensors(networks: Iterable[nn.Module]) -> Iterator[torch.Tensor]:
    for network in networks:
        yield from stored(network.parameters())
        yield from network.buffers()


def _units(module: nn.Module, limit: int) -> Iterator[list[nn.Module]]:
    """Split a network into groups of modules, each within the limit or a single layer."""
    size = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    callable_whole = not isinstance(module, nn.ModuleList | nn.ModuleDict)
    children = list(module.children())
    if callable_whole and (size <= limit or not children):
        yield list(module.modules())
        return
    if callable_whole:
        yield [module]  # its own parameters, beside those of its children
    for child in children:
        yield from _units(child, limit)


class _Unit:
    """Modules whose weights come and go together: with the first call in, with the last out."""

    def __init__(self, modules: list[nn.Module], device: torch.device) -> None:
        self._modules = modules
        self._device = device
        self._depth = 0
        self._kept: list[tuple[dict[str, Any], str, Any]] = []

    def enter(self, *_: Any) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        for module in self._modules:
            for table in cast("list[dict[str, Any]]", [module._parameters, module._buffers]):
                for name, tensor in list(table.items()):
                    if tensor is not None:
                        self._kept.append((table, name, tensor))
                        table[name] = self._moved(tensor)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        moved = tensor.detach().to(self._device, non_blocking=True)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(moved, requires_grad=tensor.requires_grad)
        return moved

    def leave(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            for table, name, tensor in self._kept:
                table[name] = tensor
            self._kept.clear()


class _PageUnit(_Unit):
    """Modules whose weights the system brings; they are given back with the last call out."""

    def enter(self, *_: Any) -> None:
        self._depth += 1

    def leave(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            own = (
                t for m in self._modules for t in (*m._parameters.values(), *m._buffers.values())
            )
            pages.give_back(stored(tensor for tensor in own if tensor is not None))
