"""Control over all attention layers of a network: their processors, and fused projections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sfumato.errors import InputError
from sfumato.models.attention import Attention
from sfumato.models.base import ConfigT, ModelMixin
from sfumato.models.processors import AttentionProcessor, AttnProcessor


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
            InputError: a mapping that misses layers or names unknown ones.
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
        for name, layer in layers.items():
            layer.set_processor(processor[name])

    def set_default_attn_processor(self) -> None:
        """Compute all attention without the fused kernel, as diffusers does under this name."""
        for _, layer in self._attention_layers():
            layer.set_kernel(AttnProcessor())

    def fuse_qkv_projections(self) -> None:
        """Compute queries, keys and values of each layer in one product.

        See `Attention.fuse_projections`. Processors written for diffusers do not notice.

        Raises:
            InputError: the network has added key and value projections.
        """
        layers = [layer for _, layer in self._attention_layers()]
        if any(layer.added_kv_proj_dim is not None for layer in layers):
            raise InputError(
                "Projections cannot be fused in a network with added key and value projections."
            )
        for layer in layers:
            layer.fuse_projections(True)

    def unfuse_qkv_projections(self) -> None:
        """Undo `fuse_qkv_projections`."""
        for _, layer in self._attention_layers():
            if layer.fused_projections:
                layer.fuse_projections(False)
