"""torch's compiler in the place of torch's networks: `Engine` for the UNet and the autoencoder.

A network is traced once for the shapes of a call (`torch.export`), compiled ahead of time to
machine code (AOTInductor), and kept on disk; other processes load that and trace nothing. Weights
are not in it: it reads them where the network has them, so there is no second copy, and numbers
that change in place (by fused LoRAs, say) count at once.

Where the package has kernels for the processor, the compiled code calls them, and what is compiled
is what lies between; see `sfumato.runtime.compiled_ops`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import sfumato
from sfumato.adapters.layer import Mix
from sfumato.adapters.state import state_of
from sfumato.errors import InputError, MissingDependencyError, SfumatoError
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.unet import UNet2DConditionModel, UNet2DConditionOutput
from sfumato.native.library import feature_names
from sfumato.runtime.compiled_build import build, cxx, first_line, has_compiler
from sfumato.runtime.compiled_code import Code
from sfumato.runtime.compiled_files import CompiledFiles
from sfumato.runtime.hindrances import arguments, hindrance
from sfumato.runtime.machine import machine_flags

logger = logging.getLogger(__name__)

#: Raise this when compiled code of before must not be used any more.
_FORMAT = 1
#: Source files that say what a network computes, below the package.
_SOURCES = ("models/*.py", "adapters/layer.py", "runtime/compiled*.py")
#: Held to trace and to compile, for which torch changes settings of the whole process.
_building = threading.RLock()


def engine_for(
    network: Any, *, folder: str | os.PathLike[str] | None = None, kernels: bool = True
) -> CompiledNetwork | None:
    """What computes a network; None for one of a kind that is not compiled.

    Args:
        network: of a pipeline.
        folder: where compiled code is kept; see `sfumato.runtime.compiled_files`.
        kernels: call the package's own kernels, and torch's functions where it has none for the
            processor; False leaves everything to torch's compiler.

    Raises:
        InputError: an option has a wrong type.
        MissingDependencyError: there is no C++ compiler, and nothing that was compiled before.
    """
    if folder is not None and not isinstance(folder, (str, os.PathLike)):
        raise InputError(f"`folder` has to be a path, not {type(folder).__name__}.")
    if not isinstance(kernels, bool):
        raise InputError(f"`kernels` has to be True or False, not {type(kernels).__name__}.")
    files = CompiledFiles(None if folder is None else Path(folder))
    if not has_compiler() and files.is_empty():
        raise MissingDependencyError(
            f"The engine 'compile' needs a C++ compiler, but there is no {cxx()}.",
            hint="Install one (`apt install g++`, `xcode-select --install`) or name it in CXX.",
        )
    engines = {UNet2DConditionModel: CompiledUNet, AutoencoderKL: CompiledAutoencoder}
    engine = engines.get(type(network))  # a class of somebody else's may compute otherwise
    return None if engine is None else engine(network, files, kernels)


class CompiledNetwork:
    """Compiled code for the parts and shapes of a network that were asked for.

    Args:
        network: it is not kept alive by this.
        files: where code is kept.
        use_kernels: see `engine_for`.
    """

    def __init__(self, network: Any, files: CompiledFiles, use_kernels: bool) -> None:
        self._network = weakref.ref(network)
        self.files, self.use_kernels = files, use_kernels
        #: The code by what it depends on, or why there is none.
        self._codes: dict[tuple[Any, ...], Code | str] = {}
        self._told: set[str] = set()

    @property
    def network(self) -> Any:
        """The network, which asks and so is there."""
        return self._network()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies of a network, and those that other processes get, compute with torch."""
        return type(None), ()

    def declines(self, reason: str | None) -> bool:
        """Whether torch has to compute, which is told once for each reason."""
        if reason is not None and reason not in self._told:
            self._told.add(reason)
            name = type(self.network).__name__
            logger.warning("The compiled %s leaves a call to torch: %s.", name, reason.rstrip("."))
        return reason is not None

    def compute(self, what: str, inputs: Mapping[str, Any]) -> Tensor | None:
        """The answer of a part, compiled first where that was not done before."""
        if not all(_is_plain(leaf) for leaf in pytree.tree_leaves(inputs)):
            self.declines("an argument holds something besides plain tensors in memory")
            return None
        inputs = pytree.tree_map_only(Tensor, lambda t: t.detach().contiguous(), dict(inputs))
        state, chosen = _state(self.network)
        odd = next((name for name, tensor in state.items() if not _is_plain(tensor)), None)
        if self.declines(odd and f"{odd} is no plain tensor in memory"):
            return None
        depends = self._depends(what, inputs, state, chosen)
        code = self._codes.get(depends) or self._code(depends, what, inputs, state)
        if isinstance(code, str):
            self.declines(code)
            return None
        try:
            return code(inputs, state)
        except RuntimeError as error:  # which torch may answer better, or tell better
            self._codes[depends] = reason = f"the compiled code failed ({first_line(error)})"
            self.declines(reason)
            return None

    def _depends(
        self,
        what: str,
        inputs: Mapping[str, Any],
        state: Mapping[str, Tensor],
        chosen: tuple[Any, ...],
    ) -> tuple[Any, ...]:
        """All that compiled code depends on; not the numbers in the weights."""
        leaves, tree = pytree.tree_flatten(inputs)
        return (
            what,
            torch.get_num_threads(),
            torch.get_default_dtype(),
            tuple(feature_names()) if self.use_kernels else None,
            type(self.network).__name__,
            json.dumps(self.network.config.to_dict(), sort_keys=True, default=str),
            tuple((name, t.dtype, t.device, t.shape, t.stride()) for name, t in state.items()),
            chosen,
            tuple((t.dtype, t.shape) for t in leaves),
            str(tree),
        )

    def _code(
        self,
        depends: tuple[Any, ...],
        what: str,
        inputs: Mapping[str, Any],
        state: Mapping[str, Tensor],
    ) -> Code | str:
        """Code from its file, which is made if there is none."""
        with _building:
            found = self._codes.get(depends)  # another thread may have been here
            if found is None:
                text = repr((*_of_process(), *depends))
                key = hashlib.sha256(text.encode()).hexdigest()[:32]
                try:
                    found = self._load(key, state) or self._make(key, what, inputs, state)
                except SfumatoError as error:
                    found = error.message
                self._codes[depends] = found
            return found

    def _load(self, key: str, state: Mapping[str, Tensor]) -> Code | None:
        path = self.files.find(key)
        if path is None:
            return None
        try:
            return Code(path, state)
        except SfumatoError as error:
            logger.warning("%s It is made anew.", error.message)
            self.files.forget(path)
            return None

    def _make(
        self, key: str, what: str, inputs: Mapping[str, Any], state: Mapping[str, Tensor]
    ) -> Code:
        with tempfile.TemporaryDirectory(prefix="sfumato-", ignore_cleanup_errors=True) as spare:
            made, read = build(self.network, what, inputs, self.use_kernels, Path(spare))
            code = Code(made, state, read)
            try:
                self.files.keep(key, lambda kept: shutil.copyfile(made, kept))
            except OSError as error:
                logger.warning("The compiled network is not kept for later: %s", error)
        return code


def _state(network: nn.Module) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
    """All tensors that a network holds by name, and what else is set in its layers."""
    state: dict[str, Tensor] = {}
    chosen = []
    for path, module in network.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                state[f"{path}.{name}" if path else name] = tensor
        processor = getattr(module, "processor", None)
        slices = getattr(processor, "slice_size", None)
        chosen.append((module.training, type(processor).__name__, slices))
    return state, tuple(chosen)


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor that compiled code, which goes by addresses, can read."""
    ordinary = type(value) in (Tensor, nn.Parameter)
    return ordinary and value.device.type == "cpu" and value.layout == torch.strided


@lru_cache(maxsize=1)
def _of_process() -> tuple[Any, ...]:
    """Versions, the processor, and the source code of the networks."""
    package = Path(sfumato.__file__).parent
    sources = sorted(path for pattern in _SOURCES for path in package.glob(pattern))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    versions = (_FORMAT, torch.__version__, sfumato.__version__, platform.machine(), sys.platform)
    return *versions, sorted(machine_flags()), code


class CompiledUNet(CompiledNetwork):
    """`Engine` for a UNet."""

    def call(
        self, what: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> UNet2DConditionOutput | tuple[Tensor] | None:
        """See `Engine.call`."""
        if torch.compiler.is_compiling():  # which asks for the network itself
            return None
        given = arguments(self.network, args, kwargs)
        if given is None or self.declines(hindrance(self.network, given) or _acting(self.network)):
            return None
        sample = given["sample"]
        as_output = given.pop("return_dict", True)
        given.pop("cross_attention_kwargs", None)  # a scale of adapters, of which none acts
        timestep = torch.as_tensor(given["timestep"], dtype=torch.float32).reshape(-1)
        if len(timestep) not in (1, len(sample)):
            return None  # torch tells what is wrong
        inputs = {name: value for name, value in given.items() if value is not None}
        inputs["timestep"] = timestep.expand(len(sample))
        result = self.compute("forward", dict(sorted(inputs.items())))
        if result is None:
            return None
        return UNet2DConditionOutput(result) if as_output else (result,)


def _acting(network: nn.Module) -> str | None:
    """Why adapters stand in the way, if they do; those in the weights do not."""
    state = state_of(network)
    if state is None:
        return None
    mix = state.current()
    if not isinstance(mix, Mix) or mix.layers or (mix.bare and state.fused):
        return "adapters act that are not fused"
    return None


class CompiledAutoencoder(CompiledNetwork):
    """`Engine` for the KL autoencoder."""

    def call(self, what: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """See `Engine.call`; "encode" gives moments, "decode" images."""
        if what == "forward" or torch.compiler.is_compiling():
            return None
        (x,) = args
        if self.declines(hindrance(self.network, {"sample": x})):
            return None
        return self.compute(what, {"x" if what == "encode" else "z": x})
