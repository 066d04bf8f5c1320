"""Attention that looks at pictures beside the text: what an IP-Adapter adds to a UNet's layers.

In each cross-attention the queries meet the text as always, then the tokens of each adapter's
pictures with keys and values of their own (arXiv:2308.06721, equation 5); the results add up, those
of the pictures times a scale and, where masks are given, each within its part of the image.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models.processors import AttnProcessor2_0, TextAndPictures

#: How much one adapter acts in a layer: one number, or one for each of its masked pictures.
Scale = float | list[float]


class IPAdapterAttnProcessor2_0(nn.Module):
    """The processor of a cross-attention layer with IP-Adapters.

    Args:
        hidden_size: channels of the layer's queries.
        cross_attention_dim: channels of the picture's tokens.
        num_tokens: how many tokens a picture has, per adapter.
        scale: how much the adapters act, one number or one per adapter.

    Attributes:
        scale: per adapter a number, or a list with one number per masked picture.
        kernel: computes the attention itself; attention slicing puts another in its place.

    Raises:
        InputError: the number of scales is not that of the adapters.
    """

    def __init__(
        self,
        hidden_size: int,
        cross_attention_dim: int | None = None,
        num_tokens: int | Sequence[int] = (4,),
        scale: float | Sequence[Scale] = 1.0,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.cross_attention_dim = cross_attention_dim
        self.num_tokens = [num_tokens] if isinstance(num_tokens, int) else list(num_tokens)
        count = len(self.num_tokens)
        self.scale: list[Scale] = [scale] * count if isinstance(scale, int | float) else list(scale)
        if len(self.scale) != count:
            raise InputError(f"`scale` has {len(self.scale)} entries for {count} adapters.")
        self.kernel = AttnProcessor2_0()
        width = hidden_size if cross_attention_dim is None else cross_attention_dim
        self.to_k_ip, self.to_v_ip = (
            nn.ModuleList(nn.Linear(width, hidden_size, bias=False) for _ in range(count))
            for _ in range(2)
        )

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: TextAndPictures | None = None,
        attention_mask: Tensor | None = None,
        ip_adapter_masks: Tensor | Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Attend to the text and to pictures.

        Args:
            attn: the `Attention` layer.
            hidden_states: see `Attention.forward`.
            encoder_hidden_states: text and pictures.
            attention_mask: a bias on the scores of the text.
            ip_adapter_masks: per adapter None, or where each of its pictures acts:
                ``(1 or N, pictures, height, width)`` in 0..1.

        Raises:
            InputError: there are no pictures, or the masks do not fit them.
        """
        if not isinstance(encoder_hidden_states, tuple):
            raise InputError(
                "A layer with an IP-Adapter was given no pictures.",
                hint="Remove the adapter with `unload_ip_adapter`.",
            )
        text, pictures = encoder_hidden_states
        masks = self._checked_masks(ip_adapter_masks, pictures)
        x = attn.to_tokens(hidden_states)
        q, k, v = attn.project(x, text)
        bias = attn.score_bias(attention_mask, k.shape[2])
        out = _joined(self.kernel.attend(q, k, v, bias, attn.scale))
        for i, (tokens, scale, mask) in enumerate(zip(pictures, self.scale, masks, strict=True)):
            if mask is not None:
                out = self._add_masked(i, attn, out, q, tokens, mask)
            elif isinstance(scale, list):
                raise InputError("A scale per picture needs `ip_adapter_masks`.")
            elif scale != 0:
                out = out + scale * self._look(i, attn, q, tokens.flatten(1, 2))
        return attn.from_tokens(attn.to_out[1](attn.to_out[0](out)), hidden_states)

    def _look(self, adapter: int, attn: Any, q: Tensor, tokens: Tensor) -> Tensor:
        """What the queries find in tokens ``(N, S, C)`` of an adapter's pictures."""
        k, v = (
            layer(tokens).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for layer in (self.to_k_ip[adapter], self.to_v_ip[adapter])
        )
        return _joined(self.kernel.attend(q, k, v, None, attn.scale))

    def _add_masked(
        self, adapter: int, attn: Any, out: Tensor, q: Tensor, tokens: Tensor, mask: Tensor
    ) -> Tensor:
        """Add what is found in each picture on its own, where its mask lets it act."""
        scale = self.scale[adapter]
        scales = scale if isinstance(scale, list) else [scale] * mask.shape[1]
        for i, number in enumerate(scales):
            if number != 0:
                found = self._look(adapter, attn, q, tokens[:, i])
                where = downsample_mask(mask[:, i], *out.shape).to(out)
                out = out + number * (found * where)
        return out

    def _checked_masks(
        self, masks: Tensor | Sequence[Tensor | None] | None, pictures: list[Tensor]
    ) -> list[Tensor | None]:
        """One entry per adapter."""
        if masks is None:
            return [None] * len(self.scale)
        # One tensor for all: (adapters, 1, height, width), with a picture each.
        listed: list[Tensor | None] = list(
            masks.unsqueeze(1) if isinstance(masks, Tensor) else masks
        )
        if not len(listed) == len(self.scale) == len(pictures):
            raise InputError(
                f"Length of ip_adapter_masks array ({len(listed)}) must match length of"
                f" self.scale array ({len(self.scale)}) and number of ip_hidden_states"
                f" ({len(pictures)})"
            )
        for i, (mask, scale, tokens) in enumerate(zip(listed, self.scale, pictures, strict=True)):
            if mask is None:
                continue
            if not isinstance(mask, Tensor) or mask.ndim != 4:
                raise InputError(
                    "Each element of the ip_adapter_masks array should be a tensor with shape"
                    " [1, num_images_for_ip_adapter, height, width]. Please use"
                    " `IPAdapterMaskProcessor` to preprocess your mask"
                )
            if mask.shape[1] != tokens.shape[1]:
                raise InputError(
                    f"Number of masks ({mask.shape[1]}) does not match number of ip images"
                    f" ({tokens.shape[1]}) at index {i}"
                )
            if isinstance(scale, list) and len(scale) != mask.shape[1]:
                raise InputError(
                    f"Number of masks ({mask.shape[1]}) does not match number of scales"
                    f" ({len(scale)}) at index {i}"
                )
        return listed


def downsample_mask(
    mask: Tensor, batch_size: int, num_queries: int, value_embed_dim: int
) -> Tensor:
    """A mask over the image as factors on a layer's tokens.

    The layer's height and width are those whose product is ``num_queries`` and whose ratio is
    nearest to the mask's.

    Args:
        mask: ``(1, height, width)``, or one per row of the batch.
        batch_size, num_queries, value_embed_dim: the shape of the result.

    Raises:
        InputError: the mask is empty, or there are neither one nor ``batch_size`` of them.
    """
    if mask.ndim != 3 or 0 in mask.shape or mask.shape[0] not in (1, batch_size):
        raise InputError(
            f"A mask for a batch of {batch_size} has to be (1 or {batch_size}, height, width) but"
            f" is {tuple(mask.shape)}."
        )
    ratio = mask.shape[2] / mask.shape[1]
    height = max(int(math.sqrt(num_queries / ratio)), 1)
    height += num_queries % height != 0
    width = max(num_queries // height, 1)
    small = F.interpolate(mask[None].float(), size=(height, width), mode="bicubic")[0].flatten(1)
    if height * width != num_queries:
        warnings.warn(
            "The aspect ratio of the mask does not match the aspect ratio of the output image."
            " Please update your masks or adjust the output size for optimal performance.",
            UserWarning,
            stacklevel=2,
        )
        small = F.pad(small, (0, max(num_queries - height * width, 0)))[:, :num_queries]
    return small[..., None].expand(batch_size, num_queries, value_embed_dim)


def _joined(heads: Tensor) -> Tensor:
    """``(N, heads, L, D)`` to ``(N, L, heads * D)``."""
    return heads.transpose(1, 2).flatten(2)
