"""Control over all attention layers of a network: their processors, and fused projections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sfumato.errors import InputError
from sfumato.models.attention import Attention, check_processor
from sfumato.models.base import ConfigT, ModelMixin
from sfumato.models.processors import AttentionProcessor, AttnProcessor, AttnProcessor2_0
from sfumato.models.xformers_attention import XFormersAttnProcessor
from sfumato.quantization.tensor import QuantizedTensor


class AttentionModel(ModelMixin[ConfigT]):
    """A network with `Attention` layers whose processors can be read and replaced."""

    def _attention_layers(self) -> Iterator[tuple[str, Attention]]:
        return ((n, m) for n, m in self.named_modules() if isinstance(m, Attention))

    @property
    def attn_processors(self) -> dict[str, AttentionProcessor]:
        """The processor of every attention layer, by ``<path of the layer>.processor``."""
        return {f"{n}.processor": m.get_processor() for n, m in self._attention_layers()}

    def set_attn_processor(
        self, processor: AttentionProcessor | Mapping[str, AttentionProcessor]
    ) -> None:
        """Compute every attention layer with this processor.

        Args:
            processor: one for all, or one per layer with the keys of `attn_processors`.

        Raises:
            InputError: a mapping that misses layers or names unknown ones, or what is no
                processor; nothing changes then.
        """
        layers = {f"{name}.processor": layer for name, layer in self._attention_layers()}
        if not isinstance(processor, Mapping):
            processor = dict.fromkeys(layers, processor)
        if set(processor) != set(layers):
            odd = sorted(set(processor) ^ set(layers))
            raise InputError(
                f"{len(layers)} attention layers need a processor each but {len(processor)} were "
                f"given; missing or unknown: {', '.join(odd[:3])}.",
                hint="Start from a copy of `attn_processors`.",
            )
        for one in processor.values():
            check_processor(one)
        for name, layer in layers.items():
            layer.set_processor(processor[name])

    def set_default_attn_processor(self) -> None:
        """Compute all attention without the fused kernel, as diffusers does under this name."""
        for _, layer in self._attention_layers():
            layer.set_kernel(AttnProcessor())

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Attend with xformers' kernel; see `sfumato.models.xformers_attention`.

        Raises:
            MissingDependencyError: (a ``ModuleNotFoundError``) xformers is not installed.
            InputError: (a ``ValueError``) there is no CUDA device.
        """
        self.set_use_memory_efficient_attention_xformers(True, attention_op)

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Attend with torch's kernel (the default)."""
        self.set_use_memory_efficient_attention_xformers(False)

    def set_use_memory_efficient_attention_xformers(
        self, valid: bool, attention_op: Any = None
    ) -> None:
        """Switch xformers on or off; processors of IP-Adapters stay, and use it too."""
        kernel = XFormersAttnProcessor(attention_op) if valid else AttnProcessor2_0()
        for _, layer in self._attention_layers():
            layer.set_kernel(kernel)

    def fuse_qkv_projections(self) -> None:
        """Compute queries, keys and values of each layer in one product.

        See `Attention.fuse_projections`. Processors written for diffusers do not notice.

        Raises:
            InputError: the network has added key and value projections, or adapters act in its
                projections (fused, they would be left out), or its weights are quantised.
        """
        layers = [layer for _, layer in self._attention_layers()]
        if any(layer.added_kv_proj_dim is not None for layer in layers):
            raise InputError(
                "Projections cannot be fused in a network with added key and value projections."
            )
        projections = [p for a in layers for p in (a.to_q, a.to_k, a.to_v)]
        if any(isinstance(getattr(p, "weight", None), QuantizedTensor) for p in projections):
            raise InputError(
                "Quantised projections cannot be fused.",
                hint="They are computed fast without; leave out `fuse_qkv_projections()`.",
            )
        if not all(map(_is_its_weight, projections)):
            raise InputError(
                "Projections in which adapters act cannot be fused.",
                hint="Make the adapters part of the weights first, with `fuse_lora()`.",
            )
        for layer in layers:
            layer.fuse_projections(True)

    def unfuse_qkv_projections(self) -> None:
        """Undo `fuse_qkv_projections`."""
        for _, layer in self._attention_layers():
            if layer.fused_projections:
                layer.fuse_projections(False)


@torch.no_grad()
def _is_its_weight(layer: Any) -> bool:
    """Whether a layer computes what its weight and bias say, and nothing beside."""
    if type(layer) is nn.Linear:
        return True
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, layer.in_features, generator=generator).to(layer.weight)
    return torch.equal(layer(probe), F.linear(probe, layer.weight, layer.bias))
