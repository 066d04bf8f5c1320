"""What a network knows about its adapters, and what of them acts in a call.

The state lies beside the network's layers. What acts can be said for one call alone (`hold`,
`scaled`, `using`), without effect on other threads: a server draws pictures with different
adapters on one network at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn

from sfumato.adapters.families import LayerAdapter
from sfumato.adapters.layer import Mix, Rows, can_adapt
from sfumato.adapters.strengths import Strength, check_number, resolve
from sfumato.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Adapter:
    """What one file holds for one network.

    Attributes:
        layers: path of a layer -> what is done to it.
        tensors: path of a layer -> the file's tensors (see `sfumato.adapters.keys.LEAVES`).
        metadata: PEFT's configuration, where the file had one.
    """

    layers: Mapping[str, LayerAdapter]
    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Fused:
    """An adapter that is part of the weights, and its strength in each layer."""

    name: str
    adapter: Adapter
    strengths: Mapping[str, float]


class AdapterState:
    """A network's adapters.

    Attributes:
        adapters: by name, in the order of loading.
        strengths: name -> strength, as last set.
        active: names of those that act.
        enabled: whether any acts at all.
        fused: what is part of the weights at present.
        target_rank: see `sfumato.adapters.layer.Slot`.
        mix: what the above comes to; replaced, never changed, so that running calls keep theirs.
    """

    def __init__(self) -> None:
        self.adapters: dict[str, Adapter] = {}
        self.strengths: dict[str, Strength | None] = {}
        self.active: tuple[str, ...] = ()
        self.enabled = True
        self.fused: tuple[Fused, ...] = ()
        self.target_rank = 0
        self.mix = Mix()

    def current(self) -> Mix | Rows:
        """What acts in this call."""
        held = _held.get().get(self)
        return self.mix if held is None else held.what

    def refresh(self, paths: Iterable[str]) -> None:
        """Bring `mix` up to date, for this thread also where a running call holds it."""
        if self.enabled:
            chosen = {name: self.strengths.get(name) for name in self.active}
            self.mix = mix_of(self, chosen, paths)
        else:
            self.mix = Mix(bare=True)
        held = _held.get().get(self)
        if held is not None and held.follows:
            held.what = self.mix

    @property
    def fused_adapters(self) -> set[Adapter]:
        """What is fused, without the strengths."""
        return {entry.adapter for entry in self.fused}


@dataclass
class _Held:
    """What acts in one call; ``follows`` when `activate` in the same thread may change it."""

    what: Mix | Rows
    follows: bool


_held: ContextVar[Mapping[AdapterState, _Held]] = ContextVar("held", default=MappingProxyType({}))

#: Parts of the paths of layers that trainable adapters and IP-Adapters bring.
_BROUGHT = (".lora_", ".processor.", ".image_projection_layers.")

#: Where a network keeps its state.
ATTRIBUTE = "_adapters"


def state_of(network: nn.Module) -> AdapterState | None:
    """The network's state, or None when it has no adapters."""
    return network.__dict__.get(ATTRIBUTE)


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """All layers that take adapters, by path; not those that adapters of any kind brought."""
    return {
        path: layer
        for path, layer in network.named_modules()
        if can_adapt(layer) and not any(part in path for part in _BROUGHT)
    }


def adapters_of(network: nn.Module) -> dict[str, Adapter]:
    """All adapters of a network by name, in the order of loading."""
    state = state_of(network)
    return {} if state is None else dict(state.adapters)


def mix_of(
    state: AdapterState, strengths: Mapping[str, Strength | None], paths: Iterable[str]
) -> Mix:
    """What these strengths by name come to, without what is fused; ``paths`` are all layers."""
    paths = list(paths)
    terms: dict[str, list[tuple[LayerAdapter, float]]] = {}
    for name, strength in strengths.items():
        adapter = state.adapters[name]
        if adapter in state.fused_adapters:
            continue
        at = resolve(strength, paths)
        for path, layer in adapter.layers.items():
            if number := at(path):
                terms.setdefault(path, []).append((layer, number))
    return Mix({path: tuple(found) for path, found in terms.items()})


# What acts in one call


@contextmanager
def hold(*networks: Any) -> Iterator[None]:
    """Keep what acts as it is now, for this thread: others may change it for calls to come.

    What this thread changes itself, in a callback say, does count.
    """
    states = [state_of(n) for n in networks if isinstance(n, nn.Module)]
    held = {s: _Held(s.mix, True) for s in states if s is not None and s not in _held.get()}
    with _holding(held):
        yield


@contextmanager
def scaled(network: Any, scale: float | None) -> Iterator[None]:
    """Multiply all strengths for a while, in this thread; fused adapters stay as they are."""
    state = state_of(network) if isinstance(network, nn.Module) else None
    if state is None or scale is None:
        yield
        return
    scale = check_number(scale, "`scale`")
    now = state.current()
    rows = (now,) if isinstance(now, Mix) else now
    times = tuple(Mix(mix.layers, mix.scale * scale, mix.bare) for mix in rows)
    with _holding({state: _Held(times[0] if isinstance(now, Mix) else times, False)}):
        yield


def scaled_by_keyword(forward: Callable[P, R]) -> Callable[P, R]:
    """Let the entry ``scale`` of a network's argument ``cross_attention_kwargs`` scale adapters."""
    place = list(inspect.signature(forward).parameters).index("cross_attention_kwargs")

    @wraps(forward)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        given: Any = args[place] if len(args) > place else kwargs.get("cross_attention_kwargs")
        scale = given.get("scale") if given else None
        if scale is None:
            return forward(*args, **kwargs)
        with scaled(args[0], scale):
            return forward(*args, **kwargs)

    return wrapped


@contextmanager
def using(
    network: nn.Module, strengths: Mapping[str, Strength] | Sequence[Mapping[str, Strength]]
) -> Iterator[None]:
    """Let other adapters act for a while, in this thread.

    Args:
        network: has these adapters.
        strengths: name -> strength; or a list of these, one per row of the batch. Of a batch that
            is a multiple as long (guidance asks for each picture twice), row ``i`` is drawn with
            entry ``i % len(strengths)``.

    Raises:
        InputError: there is no such adapter, or a strength is wrong.
    """
    rows = [strengths] if isinstance(strengths, Mapping) else list(strengths)
    state = state_of(network)
    known = {} if state is None else state.adapters
    for name in {name for row in rows for name in row}:
        if name not in known:
            raise InputError(
                f"There is no adapter '{name}'; there are: {', '.join(known) or 'none'}."
            )
    if not rows:
        raise InputError("`strengths` is an empty list; it has to have an entry per row.")
    if state is None:
        yield
        return
    paths = layers_of(network)
    mixes = tuple(mix_of(state, row, paths) for row in rows)
    one = isinstance(strengths, Mapping)
    with _holding({state: _Held(mixes[0] if one else mixes, False)}):
        yield


@contextmanager
def _holding(held: Mapping[AdapterState, _Held]) -> Iterator[None]:
    token = _held.set({**_held.get(), **held})
    try:
        yield
    finally:
        _held.reset(token)
