"""Which weights of a network are quantised, and how.

    quantize(unet, "int8")

Layers that are few, small, or whose error reaches the picture undamped keep their precision: the
first and the last convolution of a network, everything that makes embeddings of times, and the
1x1 convolutions beside the blocks, which take the stream of all blocks before them as it is: with
them in 8 bits the pictures of the embedded model were 7 dB further from the exact ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import CheckpointError, InputError
from sfumato.quantization.blocks import BlockTensor
from sfumato.quantization.int8 import Int8Tensor
from sfumato.quantization.names import BLOCKS, check_kind
from sfumato.quantization.tensor import QuantizedTensor, stored
from sfumato.quantization.winograd import WinogradTensor
from sfumato.runtime.pages import Settle, give_back

#: 3x3 convolutions of more outputs are transformed for Winograd's method in each call, not kept so:
#: they would take 16 bytes in place of 9, some 350 MiB more for Stable Diffusion 1.5, to save a
#: tenth of their time.
MOST_TRANSFORMED = 640

#: Layers that are left alone, by path.
KEPT = (
    r"conv_in",
    r"conv_out",
    r"(.+\.)?conv_shortcut",
    r"time_embedding\..*",
    r"(.+\.)?time_emb_proj",
    r"add_embedding\..*",
)

#: Smaller weights are not worth it.
SMALLEST = 2**10


@torch.no_grad()
def quantize(
    network: nn.Module,
    kind: str,
    *,
    dtype: torch.dtype | None = None,
    keep: Iterable[str] = KEPT,
    settle: Settle | None = None,
) -> int:
    """Quantise a network's linear layers and convolutions in place.

    One weight is quantised at a time. Those that lie on pages of a file give their memory back, so
    the network is never in memory unquantised.

    Args:
        network: on the CPU, in eval mode.
        kind: ``"int8"`` for integers on both sides, the fastest; ``"int8-weights"`` for weights of
            8.5 bits; ``"int4"`` for weights of 5 bits.
        dtype: that the weights claim to have; default that of the network's weights.
        keep: regular expressions; layers whose path matches one as a whole are left alone.
        settle: gets the tensors that quantised weights are made of, each as soon as it is there.

    Returns:
        How many weights were quantised.

    Raises:
        InputError: there is no such kind, or the network is not on the CPU.
        CheckpointError: a weight holds NaN or infinity.
    """
    check_kind(kind)
    left_alone = re.compile("|".join(f"(?:{pattern})" for pattern in keep) or r"(?!)")
    count = 0
    done: dict[int, nn.Parameter] = {}  # layers may share a weight
    for path, layer in network.named_modules():
        if left_alone.fullmatch(path) or not _suits(layer):
            continue
        weight: Any = layer.weight
        if weight.device.type != "cpu":
            raise InputError(
                f"A network is quantised on the CPU, but this one is on {weight.device}.",
                hint="Move it there with `.to('cpu')` first.",
            )
        if id(weight) not in done:
            done[id(weight)] = _quantised(path, layer, kind, dtype)
            count += 1
            give_back([weight])
            settle_parts(done[id(weight)], settle)
        layer.weight = done[id(weight)]
    return count


def settle_parts(weight: Tensor, settle: Settle | None) -> None:
    """Hand the tensors that a weight is made of to `settle`, if there is one."""
    if settle is not None:
        for part in stored([weight]):
            settle(part)


def _integers(layer: nn.Module) -> type[Int8Tensor] | type[WinogradTensor]:
    """How a layer's weight is kept in 8 bits."""
    transformed = (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.dilation == (1, 1)
        and layer.out_channels <= MOST_TRANSFORMED
    )
    return WinogradTensor if transformed else Int8Tensor


def _quantised(path: str, layer: Any, kind: str, dtype: torch.dtype | None) -> nn.Parameter:
    try:
        claimed = dtype or layer.weight.dtype
        if kind in BLOCKS:
            made = BlockTensor.quantise(layer.weight, claimed, BLOCKS[kind])
        else:
            made = _integers(layer).quantise(layer.weight, claimed)
    except CheckpointError:
        raise CheckpointError(
            f"The weight of the layer {path!r} holds NaN or infinity.",
            hint="Training or conversion went wrong; get the model again.",
        ) from None
    return nn.Parameter(made, requires_grad=False)


def _suits(layer: nn.Module) -> bool:
    """Whether it is a plain layer with a weight worth quantising."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or isinstance(weight, QuantizedTensor):
        return False
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1 or layer.padding_mode != "zeros":
            return False
    elif not isinstance(layer, nn.Linear):
        return False
    return weight.numel() >= SMALLEST and weight[0].numel() % 32 == 0


def quantization_of(network: nn.Module) -> str | None:
    """How a network is quantised; None where it is not."""
    for parameter in network.parameters():
        if isinstance(parameter, Int8Tensor | WinogradTensor):
            return "int8"
        if isinstance(parameter, BlockTensor):
            names = {block: name for name, block in BLOCKS.items()}
            return names.get(parameter.kind, parameter.kind)
    return None
