"""Engines: what may compute a pipeline's networks in torch's place.

    pipe = StableDiffusionPipeline.from_pretrained(folder, engine="openvino")
    pipe.use_engine("openvino", dtype="bfloat16")
    pipe.use_engine("torch")

An engine is one class, `Engine`, of which each network gets an object of its own; a network asks it
before it computes. It may decline any call, and then torch computes as ever: with gradients, with
something plugged into the network that the engine knows nothing of. So a new engine need not be
able to do everything, and nothing else has to know which engines there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from sfumato.errors import InputError, MissingDependencyError, did_you_mean


class Engine(Protocol):
    """Computes one network."""

    def call(self, what: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The answer of the network to a call, or None to let torch compute it.

        Args:
            what: "forward", or of autoencoders "encode" and "decode".
            args, kwargs: of the call; tensors of torch.
        """
        ...


@dataclass(frozen=True)
class EngineKind:
    """An engine that there is.

    Attributes:
        module: has ``engine_for(network, **options) -> Engine``; imported when it is first used.
        package: that has to be installed.
        extra: of this project, which brings it.
        networks: components of a pipeline that it computes.
        options: keywords of ``engine_for``.
    """

    module: str
    package: str
    extra: str
    networks: tuple[str, ...]
    options: tuple[str, ...]


#: Engines by name. "torch" is none: the networks compute themselves.
ENGINES: Mapping[str, EngineKind | None] = {
    "torch": None,
    "openvino": EngineKind(
        module="sfumato.runtime.openvino.modules",
        package="openvino",
        extra="openvino",
        networks=("unet", "vae"),
        options=("dtype", "threads", "shapes"),
    ),
    "compile": EngineKind(
        module="sfumato.runtime.compiled",
        package="torch",
        extra="",
        networks=("unet", "vae"),
        options=("folder", "kernels"),
    ),
}


def find(name: str, options: Mapping[str, Any]) -> EngineKind | None:
    """The engine of a name, which is installed and has these options; None for torch.

    Raises:
        InputError: there is no such engine or option.
        MissingDependencyError: its package is not installed; the hint names the extra.
    """
    if name not in ENGINES:
        raise InputError(
            f"There is no engine {name[:80]!r}; it is one of {', '.join(ENGINES)}."
            f"{did_you_mean(name, ENGINES)}"
        )
    kind = ENGINES[name]
    known = () if kind is None else kind.options
    for option in options:
        if option not in known:
            raise InputError(
                f"The engine {name!r} has no option `{option}`.{did_you_mean(option, known)}"
            )
    if kind is not None and find_spec(kind.package) is None:
        raise MissingDependencyError(
            f"The engine {name!r} needs the package {kind.package}.",
            hint=f"Run `pip install 'sfumato[{kind.extra}]'`.",
        )
    return kind


def use_engine(
    components: Mapping[str, Any],
    name: str,
    options: Mapping[str, Any],
    networks: Iterable[str] | None = None,
) -> None:
    """Let an engine compute the networks among a pipeline's components; "torch" ends that.

    Args:
        components: of the pipeline, by name.
        name: of the engine.
        options: of the engine.
        networks: names of those that it shall compute; None for all that it can. Torch computes
            the others.

    Raises:
        InputError: there is no such engine, option or network, or an option has a wrong value.
        MissingDependencyError: its package is not installed.
    """
    kind = find(name, options)
    engines = {}
    if kind is not None:
        make = import_module(kind.module).engine_for
        wanted = kind.networks if networks is None else _known(kind, networks)
        present = [key for key in wanted if hasattr(components.get(key), "engine")]
        engines = {key: make(components[key], **options) for key in present}
    for key, component in components.items():
        if hasattr(component, "engine"):
            component.engine = engines.get(key)


def _known(kind: EngineKind, networks: Iterable[str]) -> list[str]:
    wanted = list(networks)
    for name in wanted:
        if name not in kind.networks:
            raise InputError(
                f"The engine computes {' and '.join(kind.networks)}, and no {str(name)[:80]!r}."
            )
    return wanted
