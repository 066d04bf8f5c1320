"""Quantised networks on the disk: while an ordinary model loads, and in files of their own.

In a network's folder, ``config.json`` says ``"quantization_config": {"quant_method": "sfumato",
"kind": "int8"}``. A weight of 8-bit integers is a tensor ``x.weight`` of its usual shape beside the
scales of its outputs, ``x.weight_scale``; one for Winograd's method has 4 x 4 numbers for 3 x 3
and a scale for each place of each output; one in blocks is a row of bytes, as GGUF has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.checkpoints.gguf.types import BY_NAME
from sfumato.checkpoints.tensors import require_finite
from sfumato.errors import CheckpointError, ConfigError, InputError
from sfumato.quantization.blocks import BlockTensor
from sfumato.quantization.int8 import Int8Tensor, from_kernel_order, in_kernel_order
from sfumato.quantization.names import BLOCKS, KINDS, STORED, check_kind
from sfumato.quantization.network import quantization_of, quantize, settle_parts
from sfumato.quantization.tensor import QuantizedTensor
from sfumato.quantization.winograd import PLACES, SIZE, WinogradTensor
from sfumato.runtime.allocator import release_memory
from sfumato.runtime.pages import Settle, give_back

#: The key of a configuration, and who made the file.
CONFIG_KEY, METHOD = "quantization_config", "sfumato"
_SCALE = "_scale"


def take_config(values: dict[str, Any], where: str) -> str | None:
    """Take out of a configuration how its weights are quantised; None where they are not.

    Raises:
        ConfigError: in a way that is unknown here.
    """
    found = values.pop(CONFIG_KEY, None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, Mapping) else found
    kind = found.get("kind") if isinstance(found, Mapping) else None
    if method != METHOD or not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(
            f"{where}: the weights are quantised with {str(method)[:40]!r} as {str(kind)[:40]!r}, "
            "which cannot be loaded.",
            hint="Get the model in 16-bit and pass `quantization=`.",
        )
    return kind


def agreed(asked: str | None, stored: str | None, where: str) -> str | None:
    """How a network is to be quantised, from the caller's wish and the file.

    Raises:
        InputError: there is no such way, or the file's weights are quantised otherwise.
    """
    if asked is not None:
        check_kind(asked, of_files=True)
    if asked == STORED and stored is None:
        raise InputError(
            f"{where} holds no weights in blocks, which `quantization='{STORED}'` would keep.",
            hint="That is for GGUF files; quantise others with `quantization='int8-weights'`.",
        )
    if asked == STORED:
        return stored
    if None not in (asked, stored) and asked != stored:
        raise InputError(
            f"{where} holds weights quantised as {stored!r}, which cannot become {asked!r}.",
            hint="Leave out `quantization`, or load a model that is not quantised.",
        )
    return asked or stored


def config_to_write(network: nn.Module) -> dict[str, Any]:
    """What a quantised network adds to its configuration."""
    kind = quantization_of(network)
    return {} if kind is None else {CONFIG_KEY: {"quant_method": METHOD, "kind": kind}}


def split(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with ordinary tensors in place of quantised ones.

    Raises:
        InputError: weights are in blocks of types that only GGUF files have.
    """
    tensors: dict[str, Tensor] = {}
    kinds = {tensor.kind for tensor in state.values() if isinstance(tensor, BlockTensor)}
    if len(kinds) > 1 or kinds - set(BLOCKS.values()):
        raise InputError(
            f"Weights in blocks of the types {', '.join(sorted(kinds))} cannot be saved.",
            hint=f"Keep the GGUF file, or load it without `quantization='{STORED}'`.",
        )
    for name, tensor in state.items():
        if isinstance(tensor, Int8Tensor):
            tensors[name] = from_kernel_order(tensor.integers(), tuple(tensor.shape))
            tensors[name + _SCALE] = tensor.scales
        elif isinstance(tensor, WinogradTensor):
            tensors[name] = tensor.integers().unflatten(1, (SIZE, SIZE)).movedim(-1, 1)
            tensors[name + _SCALE] = tensor.scales.T
        elif isinstance(tensor, BlockTensor):
            tensors[name] = tensor.raw
        else:
            tensors[name] = tensor
    return tensors


def joined(
    tensors: Mapping[str, Tensor],
    network: nn.Module,
    kind: str,
    dtype: torch.dtype,
    where: str,
    settle: Settle | None = None,
) -> dict[str, Tensor]:
    """The state of a network from what `split` wrote.

    Args:
        tensors: as they are in the file.
        network: that they belong to, which need not have memory.
        kind: see `take_config`.
        dtype: of weights that are not quantised, and that the others claim to have.
        where: names the file in messages.
        settle: gets the tensors that weights are made of; see `sfumato.runtime.pages.settling`.

    Raises:
        CheckpointError: a quantised weight does not fit.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        scale = tensors.get(name + _SCALE)
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in tensors:
            continue
        if tensor.dtype not in (torch.int8, torch.uint8) or name not in shapes:
            state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
            settle_parts(state[name], settle)
            continue
        made = _joined(tensor, scale, shapes[name], kind, dtype)
        if made is None:
            raise CheckpointError(f"{where}: the quantised weight {name[:80]!r} does not fit.")
        state[name] = made
        settle_parts(made, settle)
        give_back([tensor])
    return state


def _joined(
    tensor: Tensor, scale: Tensor | None, shape: tuple[int, ...], kind: str, dtype: torch.dtype
) -> QuantizedTensor | None:
    """One weight, or None where the parts do not make one."""
    if tensor.dtype == torch.int8:
        return None if scale is None or kind != "int8" else _integers(tensor, scale, shape, dtype)
    block = BY_NAME[BLOCKS[kind]] if kind in BLOCKS else None
    if block is None or tensor.ndim != 1 or len(shape) < 2:
        return None
    numbers = torch.Size(shape).numel()
    if numbers % block.count or tensor.numel() != numbers // block.count * block.size:
        return None
    made = BlockTensor(shape, dtype, tensor.device, raw=tensor.clone(), kind=block.name)
    return made if torch.isfinite(made.plain(torch.float32)).all() else None


def _integers(
    tensor: Tensor, scale: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> QuantizedTensor | None:
    found, scales = tuple(tensor.shape), tuple(scale.shape)
    if not scale.is_floating_point() or not torch.isfinite(scale).all():
        return None
    if found == shape and scales == shape[:1] and len(shape) in (2, 4):
        integers = in_kernel_order(tensor).contiguous()
        return Int8Tensor.of_integers(integers, scale, shape, dtype)
    transformed = len(shape) == 4 and found == (*shape[:2], SIZE, SIZE) and shape[2:] == (3, 3)
    if not transformed or scales != (shape[0], PLACES):
        return None
    return WinogradTensor.of_integers(tensor.movedim(1, -1).flatten(1, 2), scale.float(), dtype)


def freeze(network: nn.Module) -> None:
    """Keep quantised weights from learning, which they cannot."""
    for parameter in network.parameters():
        if isinstance(parameter, QuantizedTensor):
            parameter.requires_grad_(False)


def quantize_loaded(
    network: nn.Module,
    kind: str,
    dtype: torch.dtype,
    where: str,
    *,
    check_finite: bool | None,
    settle: Settle | None = None,
) -> None:
    """Quantise a network whose parameters lie in a mapped file, and convert the others.

    With `STORED`, parameters that are blocks stay so, where a layer can compute with them.

    Raises:
        CheckpointError: a weight holds NaN or infinity.
    """
    if kind == STORED:
        _keep_blocks(network, dtype)
    else:
        quantize(network, kind, dtype=dtype, settle=settle)
    for name, parameter in network.named_parameters():
        if isinstance(parameter, QuantizedTensor):
            continue
        before = parameter.data
        parameter.data = before.to(dtype)
        if check_finite is not False:
            require_finite(name, parameter.data, Path(where), before=before)
        if parameter.data is not before:
            give_back([before])
            settle_parts(parameter, settle)
    release_memory()


def _keep_blocks(network: nn.Module, dtype: torch.dtype) -> None:
    for layer in network.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if not isinstance(parameter, QuantizedTensor):
                continue
            if isinstance(layer, nn.Linear | nn.Conv2d):
                value: Tensor = parameter.data.to(dtype)
            else:
                value = parameter.plain(dtype)
            setattr(layer, name, nn.Parameter(value, requires_grad=False))
