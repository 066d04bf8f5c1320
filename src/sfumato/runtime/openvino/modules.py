"""OpenVINO in the place of torch's networks: `Engine` for the UNet and the autoencoder.

Whatever changes what a network computes without changing its weights (gradients, hooks, processors
other than the usual ones, savings of work that change features) is left to torch; see
`sfumato.runtime.hindrances`.
Adapters of the low-rank kind are inputs of the graph: to change their strength, or them, takes no
time. Everything else that changes weights makes a new graph.
"""

from __future__ import annotations

import logging
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import ConfigError
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.unet import UNet2DConditionModel, UNet2DConditionOutput
from sfumato.runtime.hindrances import arguments, hindrance
from sfumato.runtime.openvino import adapters
from sfumato.runtime.openvino.compiled import Array, Settings
from sfumato.runtime.openvino.networks import Autoencoder, UNet
from sfumato.runtime.openvino.torch_weights import fingerprint, stored_state

logger = logging.getLogger(__name__)


def engine_for(
    network: Any,
    *,
    dtype: str | torch.dtype | None = None,
    threads: int | None = None,
    shapes: int = 2,
) -> TorchUNet | TorchAutoencoder | None:
    """What computes a network; None for one of a kind that there is no graph for.

    Args:
        network: of a pipeline.
        dtype: what to compute in, float32 or bfloat16; None takes float32 for a network in
            float32 and bfloat16 for one in 16 bits.
        threads: None takes torch's.
        shapes: how many sizes to keep compiled, each with packed weights of its own.

    Raises:
        InputError: another ``dtype``.
    """
    wanted = network.dtype if dtype is None else dtype
    name = str(wanted).removeprefix("torch.")
    if dtype is None and name == "float16":
        name = "bfloat16"
    settings = Settings(name, threads or torch.get_num_threads(), shapes)
    if isinstance(network, UNet2DConditionModel):
        return TorchUNet(network, settings)
    return TorchAutoencoder(network, settings) if isinstance(network, AutoencoderKL) else None


class _OfModule:
    """A network of torch's whose graph is made of its weights, and made anew when they change."""

    def __init__(self, network: Any, settings: Settings) -> None:
        self.network, self.settings = network, settings
        self._graph: Any = None
        self._made_of: Any = None
        self._told: set[str] = set()

    def _make(self, arrays: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def graph(self, changed: adapters.Changed | None = None) -> Any:
        """The network's graph with weights as they are now, some of them changed by adapters."""
        made_of = (fingerprint(self.network), changed)
        if made_of != self._made_of:
            arrays = stored_state(self.network)
            self._graph = self._make(ChainMap(dict(changed.arrays), arrays) if changed else arrays)
            self._made_of = made_of
        return self._graph

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies of a network, and those that other processes get, compute with torch."""
        return type(None), ()

    def declines(self, reason: str | None) -> bool:
        """Whether torch has to compute, which is told once for each reason."""
        if reason is not None and reason not in self._told:
            self._told.add(reason)
            name = type(self.network).__name__
            logger.warning("OpenVINO leaves %s to torch: %s.", name, reason)
        return reason is not None

    def answer(self, array: Array, like: Tensor) -> Tensor:
        """A result as a tensor of its own."""
        return torch.from_numpy(array.copy()).to(like.dtype)


class TorchUNet(_OfModule):
    """`Engine` for a UNet."""

    def _make(self, arrays: Mapping[str, Any]) -> UNet:
        return UNet(self.network.config, arrays, self.settings)

    def call(
        self, what: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> UNet2DConditionOutput | tuple[Tensor] | None:
        """See `Engine.call`."""
        given = arguments(self.network, args, kwargs)
        if given is None:
            return None
        acting = adapters.acting(self.network, given.get("cross_attention_kwargs"))
        if self.declines(hindrance(self.network, given) or acting.hindrance):
            return None
        try:
            predict = self.graph(acting.changed)
        except ConfigError as error:
            self.declines(str(error))
            return None
        sample = given["sample"]
        array = predict(low_rank=acting.low_rank, **_arguments(given))
        result = self.answer(array, sample)
        return UNet2DConditionOutput(result) if given.get("return_dict", True) else (result,)


def _arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of the graph's UNet from those of torch's."""
    sample = given["sample"]
    timestep = torch.as_tensor(given["timestep"], dtype=torch.float32).reshape(-1)
    labels = given.get("class_labels")
    down = given.get("down_block_additional_residuals")
    mid, mask = given.get("mid_block_additional_residual"), given.get("encoder_attention_mask")
    blocks = given.get("down_intrablock_additional_residuals") or ()
    added = given.get("added_cond_kwargs") or {}
    cond = given.get("timestep_cond")
    return {
        "sample": _array(sample),
        "timesteps": _array(timestep.expand(len(sample))),
        "context": _array(given["encoder_hidden_states"]),
        "class_labels": None if labels is None else _array(labels),
        "timestep_cond": None if cond is None else _array(cond),
        "added": {name: _array(tensor) for name, tensor in added.items()},
        "down": None if down is None else [_array(tensor) for tensor in down],
        "mid": None if mid is None else _array(mid),
        "blocks": [_array(tensor) for tensor in blocks],
        "context_mask": None if mask is None else _array(mask.float()),
    }


def _array(tensor: Tensor) -> Array:
    """A tensor as an array: float32 shares its memory, other floating types are converted."""
    tensor = tensor.detach()
    return np.ascontiguousarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())


class TorchAutoencoder(_OfModule):
    """`Engine` for the KL autoencoder."""

    def _make(self, arrays: Mapping[str, Any]) -> Autoencoder:
        return Autoencoder(self.network.config, arrays, self.settings)

    def call(self, what: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """See `Engine.call`; "encode" gives moments, "decode" images."""
        (x,) = args
        if what == "forward" or self.declines(hindrance(self.network, {"sample": x})):
            return None
        graph = self.graph()
        return self.answer((graph.encode if what == "encode" else graph.decode)(_array(x)), x)
