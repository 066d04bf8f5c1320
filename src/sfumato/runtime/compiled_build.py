"""A part of a network, traced for the shapes of a call and compiled to a file of machine code.

The compiler writes its sources and libraries into a folder that only this user can look into, and
that goes afterwards. By default torch takes one with a known name in the folder for temporary files
of all, and runs what it finds there.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sfumato.adapters.layer import AdaptedLayer
from sfumato.adapters.state import state_of
from sfumato.errors import MissingDependencyError, SfumatoError
from sfumato.models.kept_projections import keeping_projections
from sfumato.runtime import kernels
from sfumato.runtime.compiled_ops import CallingKernels

logger = logging.getLogger(__name__)

#: The name that a traced network's weights begin with.
WITHIN = "network."


class Part(nn.Module):
    """A part of a network as a function of its inputs by name.

    Args:
        network: a UNet or an autoencoder.
        what: "forward", "encode" or "decode".
    """

    def __init__(self, network: Any, what: str) -> None:
        super().__init__()
        self.network, self.what = network, what

    def forward(self, inputs: Mapping[str, Any]) -> Tensor:
        if self.what == "encode":
            return self.network._encoded_whole(**inputs)
        if self.what == "decode":
            return self.network._decoded_whole(**inputs)
        return self.network.forward(**inputs, return_dict=False)[0]


def cxx() -> str:
    """The C++ compiler that torch calls."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return os.environ.get("CXX") or usual


def has_compiler() -> bool:
    """Whether there is that compiler."""
    return shutil.which(cxx()) is not None


def trace(network: Any, what: str, inputs: Mapping[str, Any], use_kernels: bool) -> Any:
    """A part of a network as a program without Python (`torch.export.ExportedProgram`).

    Args:
        network: whose weights the program shares; other threads may compute with it meanwhile.
        what: see `Part`.
        inputs: tensors, perhaps in lists and mappings; their shapes and types count alone.
        use_kernels: let the program call the package's kernels.

    Raises:
        Exception: whatever torch, or the network, has against it.
    """
    calling = CallingKernels() if use_kernels else nullcontext()
    with _without_what_is_around(), calling:
        blank = pytree.tree_map_only(Tensor, torch.zeros_like, dict(inputs))
        return torch.export.export(Part(_twin(network), what), (blank,), strict=False)


def build(
    network: Any, what: str, inputs: Mapping[str, Any], use_kernels: bool, folder: Path
) -> tuple[Path, frozenset[str]]:
    """Trace and compile; arguments as for `trace`.

    Args:
        folder: of one's own, for the result and what comes up on the way.

    Returns:
        The compiled file, and the names of the weights that the answer depends on.

    Raises:
        MissingDependencyError: there is no compiler.
        SfumatoError: torch cannot compile it.
    """
    name = f"{type(network).__name__} ({what})"
    if not has_compiler():
        raise MissingDependencyError(
            f"{name} was not compiled for this call before, and there is no C++ compiler."
        )
    logger.warning("Compiling %s, once for these shapes; this can take minutes.", name)
    path = folder / "compiled.pt2"
    options = {
        # Numbers of weights do not belong into code that other models use, too: neither all of
        # them, nor short vectors, nor what follows from a vector of one number.
        "aot_inductor.package_constants_in_so": False,
        "freezing": False,
        "always_keep_tensor_constants": True,
        "joint_graph_constant_folding": False,
        # Those would lie in the folder of all, and stay.
        "aot_inductor.precompile_headers": False,
        "cpp.threads": torch.get_num_threads(),
        "compile_threads": 1,
    }
    try:
        with _without_what_is_around(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of its own code
            from torch._inductor import aoti_compile_and_package
            from torch._inductor.utils import fresh_cache

            with fresh_cache(dir=str(folder)):
                traced = trace(network, what, inputs, use_kernels)
                aoti_compile_and_package(traced, package_path=str(path), inductor_configs=options)
    except Exception as error:  # of the tracer, the compiler or the system's compiler
        raise SfumatoError(f"{name} cannot be compiled: {first_line(error)}") from error
    return path, weights_read(traced)


def weights_read(program: Any) -> frozenset[str]:
    """The names of the weights that a traced program's answer depends on."""
    seen, ahead = set(), list(program.graph.find_nodes(op="output"))
    while ahead:
        node = ahead.pop()
        if node not in seen:
            seen.add(node)
            ahead.extend(node.all_input_nodes)
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = (held[node.name] for node in seen if node.name in held)
    return frozenset(name.removeprefix(WITHIN) for name in names)


def first_line(error: Exception) -> str:
    """What an error of torch says, without the pages that may follow."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _twin(network: Any) -> Any:
    """The network on the same weights, for the tracer, which puts others there for a while."""
    memo: dict[int, Any] = {id(t): t for t in (*network.parameters(), *network.buffers())}
    adapted = [layer for layer in network.modules() if isinstance(layer, AdaptedLayer)]
    for shared in (state_of(network), *(layer.slot for layer in adapted)):
        memo[id(shared)] = shared
    return copy.deepcopy(network, memo)


@contextmanager
def _without_what_is_around() -> Iterator[None]:
    """Without gradients, kernels that the tracer cannot see through, and what is kept in a call."""
    plain = torch.inference_mode(False), torch.no_grad()
    with plain[0], plain[1], kernels.using(False), keeping_projections():
        yield
