"""The attention layer: it owns the projections, under diffusers' names.

How queries meet keys is the business of its processor (see `sfumato.models.processors`).
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models.conventions import CONTEXT_GROUPS, NORM_EPS
from sfumato.models.kept_projections import keep_projections, known_projections
from sfumato.models.processors import (
    AttentionProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
    TextAndPictures,
    attention_weights,
    replacement_for,
)

logger = logging.getLogger(__name__)

#: Keywords that IP-adapters pass to all processors, of which only theirs take notice.
_QUIET_KEYWORDS = frozenset({"ip_adapter_masks", "ip_hidden_states"})


class Attention(nn.Module):
    """Multi-head attention from image tokens to themselves or to a context.

    Args:
        query_dim: channels of the input and output.
        cross_attention_dim: channels of the context; None for self-attention.
        heads, dim_head: number of heads and channels of each.
        dropout: probability after the output projection.
        bias: biases in the query, key and value projections.
        cross_attention_norm: "layer_norm" or "group_norm" (in `CONTEXT_GROUPS`) over the context,
            or None.
        added_kv_proj_dim: channels of a context whose own keys and values are prepended to those
            of the image (as in unCLIP and DeepFloyd); None for the ordinary kind.
        only_cross_attention: with ``added_kv_proj_dim``, attend to the context alone.
        norm_num_groups, eps: group norm of the input; None for no norm.
        residual_connection: add the input to the output.
        upcast_attention: scores in float32, which all processors here do anyway; for those that
            are plugged in.
    """

    def __init__(
        self,
        query_dim: int,
        cross_attention_dim: int | None = None,
        *,
        heads: int,
        dim_head: int,
        dropout: float = 0.0,
        bias: bool = False,
        cross_attention_norm: str | None = None,
        added_kv_proj_dim: int | None = None,
        only_cross_attention: bool = False,
        norm_num_groups: int | None = None,
        eps: float = 1e-5,
        residual_connection: bool = False,
        upcast_attention: bool = False,
    ) -> None:
        super().__init__()
        inner_dim = heads * dim_head
        context_dim = query_dim if cross_attention_dim is None else cross_attention_dim
        self.heads = self.sliceable_head_dim = heads
        self.scale = dim_head**-0.5
        self.is_cross_attention = cross_attention_dim is not None
        self.added_kv_proj_dim = added_kv_proj_dim
        self.only_cross_attention = only_cross_attention
        self.residual_connection = residual_connection
        self.upcast_attention = upcast_attention
        self.fused_projections = False
        self.to_qkv: nn.Linear | None = None
        self.to_kv: nn.Linear | None = None

        self.group_norm = None
        if norm_num_groups is not None:
            self.group_norm = nn.GroupNorm(norm_num_groups, query_dim, eps=eps)
        self.norm_cross: nn.LayerNorm | nn.GroupNorm | None = None
        if cross_attention_norm == "layer_norm":
            self.norm_cross = nn.LayerNorm(context_dim)
        elif cross_attention_norm == "group_norm":
            width = context_dim if added_kv_proj_dim is None else added_kv_proj_dim
            self.norm_cross = nn.GroupNorm(CONTEXT_GROUPS, width, eps=NORM_EPS)
        self.to_q = nn.Linear(query_dim, inner_dim, bias=bias)
        self.to_k = self.to_v = None
        if not only_cross_attention:
            self.to_k = nn.Linear(context_dim, inner_dim, bias=bias)
            self.to_v = nn.Linear(context_dim, inner_dim, bias=bias)
        self.add_k_proj = self.add_v_proj = None
        if added_kv_proj_dim is not None:
            self.add_k_proj = nn.Linear(added_kv_proj_dim, inner_dim)
            self.add_v_proj = nn.Linear(added_kv_proj_dim, inner_dim)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, query_dim), nn.Dropout(dropout)])
        self.set_processor(AttnProcessor2_0())

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | TextAndPictures | None = None,
        attention_mask: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        """Attend.

        Args:
            hidden_states: ``(N, C, H, W)`` or ``(N, L, C)``.
            encoder_hidden_states: context ``(N, S, context_dim)``; None for self-attention. With
                IP-Adapters, pictures beside it.
            attention_mask: a bias ``(N, 1, S)`` that is added to the scores.
            **cross_attention_kwargs: passed on to the processor.

        Returns:
            A tensor shaped like ``hidden_states``.
        """
        accepted = self._accepted(cross_attention_kwargs)
        replacement = replacement_for(self)
        if replacement is not None:
            return replacement(
                self, hidden_states, encoder_hidden_states, attention_mask, **accepted
            )
        return self.processor(
            self,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **accepted,
        )

    # The steps of a processor.

    def to_tokens(self, x: Tensor) -> Tensor:
        """Normalise the input and lay it out as tokens ``(N, L, C)``."""
        if x.ndim == 3:
            if self.group_norm is None:
                return x
            return self.group_norm(x.transpose(1, 2)).transpose(1, 2)
        if self.group_norm is not None:
            x = self.group_norm(x)
        return x.flatten(2).transpose(1, 2)

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``(N, heads, tokens, dim_head)`` of tokens and context."""
        if isinstance(context, tuple):
            raise InputError(
                f"{type(self.processor).__name__} cannot attend to pictures, but an IP-Adapter is"
                " loaded.",
                hint="Set attention processors before loading IP-Adapters, or unload these.",
            )
        if context is None:
            context = x
        elif (kept := known_projections(self, context)) is not None:
            return self._split(self.to_q(x)), *kept
        q, k, v = (self._split(part) for part in self._projected(x, context))
        if context is not x:
            keep_projections(self, context, k, v)
        return q, k, v

    def _projected(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``(N, tokens, inner_dim)``."""
        if context is not x and self.norm_cross is not None:
            context = self.norm_encoder_hidden_states(context)
        if self.add_k_proj is not None and self.add_v_proj is not None:
            q, k, v = self.to_q(x), self.add_k_proj(context), self.add_v_proj(context)
            if self.to_k is not None and self.to_v is not None:
                k = torch.cat([k, self.to_k(x)], dim=1)
                v = torch.cat([v, self.to_v(x)], dim=1)
            return q, k, v
        if self.fused_projections:
            return self._project_fused(x, context)
        assert self.to_k is not None and self.to_v is not None
        return self.to_q(x), self.to_k(context), self.to_v(context)

    def _project_fused(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.to_qkv is not None:
            q, k, v = self.to_qkv(x).chunk(3, dim=-1)
            return q, k, v
        assert self.to_kv is not None
        k, v = self.to_kv(context).chunk(2, dim=-1)
        return self.to_q(x), k, v

    def score_bias(self, mask: Tensor | None, keys: int) -> Tensor | None:
        """A bias ``(N, 1, 1, S)`` from a mask ``(N, 1, S')``.

        A mask over the context alone is padded with zeros for the image's own keys.
        """
        if mask is None:
            return None
        if self.added_kv_proj_dim is not None and mask.shape[-1] < keys:
            mask = F.pad(mask, (0, keys - mask.shape[-1]))
        return mask.unsqueeze(1)

    def from_tokens(self, tokens: Tensor, hidden_states: Tensor) -> Tensor:
        """Lay tokens ``(N, L, C)`` out like the input, and add the input if so configured."""
        if hidden_states.ndim == 4:
            tokens = tokens.transpose(1, 2).reshape(hidden_states.shape)
        if self.residual_connection:
            tokens = hidden_states + tokens
        factor = self.rescale_output_factor
        return tokens if factor == 1 else tokens / factor

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def norm_encoder_hidden_states(self, context: Tensor) -> Tensor:
        """The context ``(N, S, C)``, normalised over its channels."""
        assert self.norm_cross is not None
        if isinstance(self.norm_cross, nn.GroupNorm):
            return self.norm_cross(context.transpose(1, 2)).transpose(1, 2)
        return self.norm_cross(context)

    @torch.no_grad()
    def fuse_projections(self, fuse: bool = True) -> None:
        """Compute queries, keys and values in one product (keys and values, for a context).

        The fused layer holds a copy of the weights as they are now; the single layers stay.
        """
        assert self.to_k is not None and self.to_v is not None
        self.to_qkv = self.to_kv = None
        if fuse and self.is_cross_attention:
            self.to_kv = _joined([self.to_k, self.to_v])
        elif fuse:
            self.to_qkv = _joined([self.to_q, self.to_k, self.to_v])
        self.fused_projections = fuse

    # What processors written for diffusers call, besides the layers themselves.

    #: Kinds of normalisation that other networks have and these do not.
    norm_q = norm_k = spatial_norm = None
    #: The result is divided by this; only the middle of a `UNet2DModel` may have another.
    rescale_output_factor: float = 1.0

    def prepare_attention_mask(
        self,
        attention_mask: Tensor | None,
        target_length: int,
        batch_size: int,
        out_dim: int = 3,
    ) -> Tensor | None:
        """A mask ``(N, 1, S)``, repeated for each head: ``(N * heads, 1, S)`` or, with
        ``out_dim=4``, ``(N, heads, 1, S)``. One that is too short gains ``target_length`` zeros.
        """
        if attention_mask is None:
            return None
        if attention_mask.shape[-1] != target_length:
            attention_mask = F.pad(attention_mask, (0, target_length))
        if out_dim == 4:
            return attention_mask.unsqueeze(1).expand(-1, self.heads, -1, -1)
        if attention_mask.shape[0] < batch_size * self.heads:
            attention_mask = attention_mask.repeat_interleave(self.heads, dim=0)
        return attention_mask

    def head_to_batch_dim(self, x: Tensor, out_dim: int = 3) -> Tensor:
        """Tokens ``(N, L, C)`` as heads ``(N * heads, L, C / heads)``, or four-dimensional."""
        heads = self._split(x)
        return heads.flatten(0, 1) if out_dim == 3 else heads

    def batch_to_head_dim(self, x: Tensor) -> Tensor:
        """The inverse of `head_to_batch_dim`."""
        return x.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)

    def get_attention_scores(
        self, query: Tensor, key: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Softmax of the scores ``(N * heads, L, S)``, in the type of ``query``."""
        return attention_weights(query, key, attention_mask, self.scale).to(query.dtype)

    # Processors and slices.

    def set_processor(self, processor: AttentionProcessor) -> None:
        """Compute with another processor; it is registered as a submodule if it is a module.

        Raises:
            InputError: what cannot be called is no processor.
        """
        check_processor(processor)
        self._modules.pop("processor", None)
        self.__dict__.pop("processor", None)
        parameters = inspect.signature(processor.__call__).parameters.values()
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._keywords = None if takes_all else frozenset(p.name for p in parameters)
        self.processor = processor

    def get_processor(self) -> AttentionProcessor:
        """The processor in use."""
        return self.processor

    def set_attention_slice(self, slice_size: int | None) -> None:
        """Compute in slices of ``slice_size`` heads, or with the fused kernel for None.

        Raises:
            InputError: a slice larger than the number of heads, or smaller than one.
        """
        self.check_slice(slice_size)
        sliced = slice_size is not None
        self.set_kernel(SlicedAttnProcessor(slice_size) if sliced else AttnProcessor2_0())

    def set_kernel(self, kernel: AttnProcessor2_0) -> None:
        """Attend with another kernel; a processor of IP-Adapters stays, and uses it."""
        processor: Any = self.processor
        if hasattr(processor, "kernel"):
            processor.kernel = kernel
        else:
            self.set_processor(kernel)

    def check_slice(self, slice_size: int | None) -> None:
        """Raise `InputError` if `set_attention_slice` would."""
        if slice_size is not None and not 1 <= slice_size <= self.sliceable_head_dim:
            raise InputError(
                f"slice_size has to be from 1 to {self.sliceable_head_dim} but is {slice_size}."
            )

    def _accepted(self, keywords: dict[str, Any]) -> dict[str, Any]:
        if not keywords or self._keywords is None:
            return keywords
        unknown = [k for k in keywords if k not in self._keywords and k not in _QUIET_KEYWORDS]
        if unknown:
            logger.warning(
                "cross_attention_kwargs %s are not expected by %s and will be ignored.",
                unknown,
                type(self.processor).__name__,
            )
        return {k: v for k, v in keywords.items() if k in self._keywords}


def check_processor(processor: Any) -> None:
    """Raise `InputError` for what cannot be a processor."""
    if isinstance(processor, type) or not callable(processor):
        raise InputError(
            f"An attention processor has to be something to call but is {str(processor)[:80]!r}.",
            hint="Such as `AttnProcessor2_0()`, the default.",
        )


def _joined(layers: list[nn.Linear]) -> nn.Linear:
    first = layers[0]
    joined = nn.Linear(
        first.in_features,
        sum(layer.out_features for layer in layers),
        bias=first.bias is not None,
        device=first.weight.device,
        dtype=first.weight.dtype,
    )
    joined.weight.copy_(torch.cat([layer.weight for layer in layers]))
    if first.bias is not None:
        joined.bias.copy_(torch.cat([layer.bias for layer in layers]))
    return joined
