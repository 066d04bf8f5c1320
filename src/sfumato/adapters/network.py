"""Loading adapters on a network, switching and fusing them.

Functions over a network (any `torch.nn.Module`), which is an untouched network again when the last
adapter is gone. Several adapters add up, each relative to the network's original weights, so their
order does not matter.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sfumato.adapters.families import on_device
from sfumato.adapters.layer import AdaptedLayer, Terms, adapt, changed, drop_factors, restore
from sfumato.adapters.state import (
    ATTRIBUTE,
    Adapter,
    AdapterState,
    Fused,
    layers_of,
    state_of,
)
from sfumato.adapters.strengths import Strength, check_number, resolve
from sfumato.errors import AdapterError, InputError, NumericalError
from sfumato.quantization.tensor import QuantizedTensor

logger = logging.getLogger(__name__)


def add(
    network: nn.Module, name: str, adapter: Adapter, *, replace: bool = False, alone: bool = True
) -> None:
    """Give a network an adapter.

    A new one acts at strength 1, and those before it no longer do (``alone``), as in diffusers.
    One that takes the place of another (``replace``) acts as that did.

    Raises:
        InputError: the name is taken (or, with ``replace``, not there), or the network's attention
            projections are fused into one layer.
    """
    state = state_of(network)
    check_name(network, name, replace=replace)
    require_single_projections(network)
    if state is None:
        state = network.__dict__[ATTRIBUTE] = AdapterState()
    if replace:
        _write(network, state, _fused_without(state, [state.adapters[name]]))
    state.adapters[name] = adapter
    if not replace:
        state.strengths[name] = 1.0
        state.active = (name,) if alone else (*state.active, name)
    for path in adapter.layers:
        adapt(network.get_submodule(path), state, path).slot.target_rank = state.target_rank
    _tidy(network, state)


def check_name(network: nn.Module, name: str, *, replace: bool = False) -> None:
    """Raise `InputError` when the name is taken, or with ``replace`` is not there."""
    state = state_of(network)
    taken = state is not None and name in state.adapters
    if taken and not replace:
        raise InputError(
            f"Adapter name {name} already in use in the model - please select a new adapter name."
        )
    if replace and not taken:
        raise InputError(
            f"Trying to hotswap LoRA adapter '{name}' but there is no existing adapter by that"
            " name.",
            hint="Choose an existing adapter name or set `hotswap=False` to prevent hotswapping.",
        )


def remove(network: nn.Module, names: Iterable[str] | None = None) -> None:
    """Take adapters off a network; unknown names are passed over.

    Given names are taken out of fused weights too. Without names all go, but what is fused stays
    in the weights, as in diffusers; `unfuse` still brings back the originals.
    """
    state = state_of(network)
    if state is None:
        return
    gone = list(state.adapters) if names is None else [n for n in names if n in state.adapters]
    if names is not None:
        _write(network, state, _fused_without(state, [state.adapters[n] for n in gone]))
    for name in gone:
        del state.adapters[name]
        state.strengths.pop(name, None)
    were_active = bool(state.active)
    state.active = tuple(n for n in state.active if n in state.adapters)
    if were_active and not state.active and state.adapters:
        state.active = (next(iter(state.adapters)),)  # as PEFT does
        logger.warning("No active adapter is left; '%s' acts now.", state.active[0])
    _tidy(network, state)


def activate(
    network: nn.Module, names: Sequence[str], strengths: Sequence[Strength | None] | None = None
) -> None:
    """Let these adapters act, and no others; takes no time to speak of.

    Args:
        network: names of adapters that it does not have are passed over.
        names: of adapters.
        strengths: one per name; see `sfumato.adapters.strengths`. None is 1.

    Raises:
        InputError: a strength is wrong; nothing has changed then.
    """
    state = state_of(network)
    if state is None:
        return
    given = dict(zip(names, strengths or [None] * len(names), strict=True))
    chosen = {name: strength for name, strength in given.items() if name in state.adapters}
    paths = layers_of(network)
    for strength in chosen.values():
        resolve(strength, paths)
    state.strengths |= chosen
    state.active = tuple(chosen)
    state.refresh(paths)


def set_enabled(network: nn.Module, enabled: bool) -> None:
    """Switch all adapters off, fused ones included, or on again."""
    state = state_of(network)
    if state is not None:
        state.enabled = enabled
        state.refresh(layers_of(network))


def fuse(network: nn.Module, names: Sequence[str] | None = None, scale: float = 1.0) -> None:
    """Make adapters part of the weights, so that they cost no time; `unfuse` undoes it exactly.

    The original parameters are put aside, not changed. When anything fails, nothing has happened.

    Args:
        network: one without adapters stays as it is.
        names: which; None for those that act. Unknown ones are passed over.
        scale: multiplies their strengths.

    Raises:
        InputError: the scale is no number, or attention projections are fused, or weights are
            quantised.
        AdapterError: a fused weight would have NaN or infinity.
    """
    scale = check_number(scale, "`lora_scale`")
    state = state_of(network)
    if state is None:
        return
    require_single_projections(network)
    chosen = list(state.active) if names is None else [n for n in names if n in state.adapters]
    paths = layers_of(network)
    entries = list(state.fused)
    for name in chosen:
        adapter = state.adapters[name]
        if adapter in state.fused_adapters:
            logger.warning("The adapter '%s' is fused already.", name)
            continue
        at = resolve(state.strengths.get(name), paths)
        entries.append(Fused(name, adapter, {path: at(path) * scale for path in adapter.layers}))
    _require_plain(network, entries)
    try:
        _write(network, state, tuple(entries))
    except NumericalError as error:
        raise AdapterError(f"The adapters cannot be fused: {error.message}") from None
    state.refresh(layers_of(network))


def _require_plain(network: nn.Module, entries: Sequence[Fused]) -> None:
    for path in {path for entry in entries for path in entry.strengths}:
        if isinstance(getattr(network.get_submodule(path), "weight", None), QuantizedTensor):
            raise InputError(
                "Adapters cannot be fused into quantised weights.",
                hint="They act beside the weights without fusing; or load the model without "
                "`quantization`, fuse, and quantise then.",
            )


def unfuse(network: nn.Module) -> None:
    """Bring back the original parameters, the very objects; fused adapters act unfused again."""
    state = state_of(network)
    if state is not None and state.fused:
        require_single_projections(network)
        _write(network, state, ())
        _tidy(network, state)


def move(network: nn.Module, names: Iterable[str], device: torch.device | str | int) -> None:
    """Keep adapters on a device; layers fetch what they need from there."""
    state = state_of(network)
    if state is None:
        return
    for name in [n for n in names if n in state.adapters]:
        old = state.adapters[name]
        layers = {path: on_device(layer, device) for path, layer in old.layers.items()}
        new = Adapter(layers, old.tensors, old.metadata)
        state.adapters[name] = new
        state.fused = tuple(
            Fused(entry.name, new, entry.strengths) if entry.adapter is old else entry
            for entry in state.fused
        )
    _tidy(network, state)


def prepare_for_swapping(
    network: nn.Module, target_rank: int, check_compiled: str = "error"
) -> None:
    """Compute all low-rank adapters at one rank, so that compiled code fits each of them.

    Args:
        network: one without adapters, preferably.
        target_rank: the highest rank of all adapters to come.
        check_compiled: "error", "warn" or "ignore" when there are adapters already.

    Raises:
        InputError: there are adapters already, or an argument is out of range.
    """
    if not isinstance(target_rank, int) or isinstance(target_rank, bool) or target_rank < 1:
        raise InputError(f"`target_rank` has to be a whole number from 1 on, not {target_rank!r}.")
    if check_compiled not in ("error", "warn", "ignore"):
        raise InputError(
            f"check_compiled should be one of 'error', 'warn', or 'ignore', got '{check_compiled}'"
            " instead."
        )
    state = state_of(network)
    if state is not None and state.adapters and check_compiled != "ignore":
        message = "Call `enable_lora_hotswap` before loading the first adapter."
        if check_compiled == "error":
            raise InputError(message)
        logger.warning(message)
    if state is None:
        state = network.__dict__[ATTRIBUTE] = AdapterState()
    state.target_rank = target_rank
    for layer in _adapted(network):
        layer.slot.target_rank = target_rank
        layer.slot.forget()


@contextmanager
def all_or_nothing(networks: Iterable[nn.Module]) -> Iterator[None]:
    """When the block raises, the networks have the adapters again that they had before it."""
    before = [(network, _Snapshot.of(state_of(network))) for network in networks]
    try:
        yield
    except BaseException:
        for network, snapshot in before:
            state = state_of(network)
            if state is not None:
                snapshot.restore(network, state)
        raise


@dataclass(frozen=True)
class _Snapshot:
    adapters: dict[str, Adapter]
    strengths: dict[str, Strength | None]
    active: tuple[str, ...]
    fused: tuple[Fused, ...]

    @classmethod
    def of(cls, state: AdapterState | None) -> _Snapshot:
        state = state or AdapterState()
        return cls(dict(state.adapters), dict(state.strengths), state.active, state.fused)

    def restore(self, network: nn.Module, state: AdapterState) -> None:
        state.adapters, state.strengths = dict(self.adapters), dict(self.strengths)
        state.active = self.active
        if state.fused != self.fused:
            _write(network, state, self.fused)
        _tidy(network, state)


def require_single_projections(network: nn.Module) -> None:
    """Raise `InputError` while attention projections are fused: adapters would not act there."""
    if any(getattr(module, "fused_projections", False) for module in network.modules()):
        raise InputError(
            "Adapters cannot change while the attention projections are fused.",
            hint="Call `unfuse_qkv_projections()` first, and fuse them again afterwards.",
        )


def _write(network: nn.Module, state: AdapterState, entries: tuple[Fused, ...]) -> None:
    """Make exactly these adapters part of the weights; all or nothing."""
    terms: dict[str, Terms] = {}
    for entry in entries:
        for path, strength in entry.strengths.items():
            if strength:
                term = (entry.adapter.layers[path], strength)
                terms[path] = (*terms.get(path, ()), term)
    old = {path for entry in state.fused for path in entry.strengths}
    new: list[tuple[AdaptedLayer, tuple[Any, Any]]] = []
    for path in terms.keys() | old:
        layer = network.get_submodule(path)
        if not isinstance(layer, AdaptedLayer):
            continue
        originals = layer.slot.originals(layer)
        if path not in terms:
            new.append((layer, originals))
            continue
        weight, bias = changed(*originals, originals, terms[path])
        learns = originals[0].requires_grad
        fused_bias = None if bias is None else nn.Parameter(bias, requires_grad=learns)
        new.append((layer, (nn.Parameter(weight, requires_grad=learns), fused_bias)))
    for layer, (weight, bias) in new:
        slot = layer.slot
        originals = slot.originals(layer)
        slot.original = None if weight is originals[0] else originals
        layer.weight, layer.bias = weight, bias
        slot.forget()
    state.fused = entries


def _fused_without(state: AdapterState, adapters: Sequence[Adapter]) -> tuple[Fused, ...]:
    return tuple(entry for entry in state.fused if entry.adapter not in adapters)


def _tidy(network: nn.Module, state: AdapterState) -> None:
    """Make layers plain again that no adapter needs, and forget an empty state."""
    needed = {path for adapter in state.adapters.values() for path in adapter.layers}
    for layer in _adapted(network):
        layer.slot.forget()
        drop_factors(layer, state.adapters)
        if layer.slot.path not in needed and layer.slot.original is None:
            restore(layer)
    if not state.adapters and not state.fused and not state.target_rank:
        network.__dict__.pop(ATTRIBUTE, None)
    else:
        state.refresh(layers_of(network))


def _adapted(network: nn.Module) -> list[AdaptedLayer]:
    return [module for module in network.modules() if isinstance(module, AdaptedLayer)]
