"""The first half of a UNet, with all that it learns about time and classes.

UNets go on with a second half; a ControlNet is a first half alone whose features are handed to a
UNet.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models import unet_conditioning as conditioning
from sfumato.models import unet_stages
from sfumato.models.attention_model import AttentionModel
from sfumato.models.base import ConfigT
from sfumato.models.conventions import MASKED
from sfumato.models.embeddings import TimestepEmbedding
from sfumato.models.k_blocks import KDownBlock
from sfumato.models.k_stages import KStage
from sfumato.models.layers import get_activation
from sfumato.models.transformer import Context
from sfumato.models.unet_blocks import DownBlock, MidBlock
from sfumato.models.unet_config import UNet2DConditionConfig


class UNetEncoder(AttentionModel[ConfigT]):
    """From latents to the features of the lowest resolution, with a skip from every layer."""

    def _unet_config(self) -> UNet2DConditionConfig:
        """The configuration as that of a UNet."""
        raise NotImplementedError

    def _build_encoder(self, c: UNet2DConditionConfig) -> None:
        """Make the layers up to the middle, under the names that their weights have."""
        self.conv_in = nn.Conv2d(
            c.in_channels,
            c.block_out_channels[0],
            c.conv_in_kernel,
            padding=(c.conv_in_kernel - 1) // 2,
        )
        time_dim = unet_stages.time_width(c)
        self.time_proj, waves = conditioning.time_projection(c)
        self.time_embedding = TimestepEmbedding(
            waves,
            time_dim,
            act_fn=c.act_fn,
            post_act_fn=c.timestep_post_act,
            cond_proj_dim=c.time_cond_proj_dim,
        )
        self.encoder_hid_proj = conditioning.text_projection(c)
        self.class_embedding = conditioning.class_embedding(c, waves, time_dim)
        if c.addition_time_embed_dim is not None and c.addition_embed_type == "text_time":
            self.add_time_proj = conditioning.sinusoids(c, c.addition_time_embed_dim)
        self.add_embedding = conditioning.addition_embedding(c, time_dim)
        act = c.time_embedding_act_fn
        self.time_embed_act = None if act is None else get_activation(act)
        stages, width = unet_stages.resolve(c), unet_stages.block_width(c)
        self.down_blocks = nn.ModuleList(
            KDownBlock(stage, c, width) if isinstance(stage, KStage) else DownBlock(stage, c, width)
            for stage in stages.down
        )

    def _build_middle(self, c: UNet2DConditionConfig) -> None:
        """Make the middle; apart, because weights are listed in the order of diffusers."""
        stage, width = unet_stages.resolve(c).mid, unet_stages.block_width(c)
        self.mid_block = None if stage is None else MidBlock(stage, c, width)

    def _embed(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        text: Tensor,
        class_labels: Tensor | None,
        timestep_cond: Tensor | None,
        added: Mapping[str, Tensor],
    ) -> Tensor:
        """Time, class and pooled conditions in one vector per sample."""
        if timestep_cond is not None and self.time_embedding.cond_proj is None:
            raise InputError("timestep_cond needs a model with `time_cond_proj_dim`.")
        emb = self.time_embedding(self.get_time_embed(sample, timestep), timestep_cond)
        class_emb = self.get_class_embed(sample, class_labels)
        if class_emb is not None and self._unet_config().class_embeddings_concat:
            emb = torch.cat([emb, class_emb], dim=-1)
        elif class_emb is not None:
            emb = emb + class_emb
        aug_emb = self.get_aug_embed(emb, text, added)
        if aug_emb is not None:
            emb = emb + aug_emb
        return emb if self.time_embed_act is None else self.time_embed_act(emb)

    def get_time_embed(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """Waves ``(N, C)`` of one timestep, or of one per sample, in the type of ``sample``."""
        return self.time_proj(each_timestep(sample, timestep)).to(sample.dtype)

    def get_class_embed(self, sample: Tensor, class_labels: Tensor | None) -> Tensor | None:
        """The class embedding ``(N, C)``, or None for a model without classes."""
        if self.class_embedding is None:
            return None
        if class_labels is None:
            raise InputError("class_labels should be provided when num_class_embeds > 0")
        if self._unet_config().class_embed_type == "timestep":
            class_labels = self.time_proj(class_labels).to(sample.dtype)
        return self.class_embedding(class_labels).to(sample.dtype)

    def get_aug_embed(
        self, emb: Tensor, encoder_hidden_states: Tensor, added_cond_kwargs: Mapping[str, Tensor]
    ) -> Tensor | None:
        """What is added to the time embedding ``emb``, or None; see ``addition_embed_type``."""
        kind = self._unet_config().addition_embed_type
        if self.add_embedding is None:
            return None
        if kind == "text":
            return self.add_embedding(encoder_hidden_states)
        if kind == "text_time":
            text_embeds = added_condition(
                added_cond_kwargs, "text_embeds", f"addition_embed_type={kind!r}"
            )
            time_ids = added_condition(
                added_cond_kwargs, "time_ids", f"addition_embed_type={kind!r}"
            )
            waves = self.add_time_proj(time_ids.flatten()).reshape(text_embeds.shape[0], -1)
            return self.add_embedding(torch.cat([text_embeds, waves], dim=-1).to(emb.dtype))
        image_embeds = added_condition(
            added_cond_kwargs, "image_embeds", f"addition_embed_type={kind!r}"
        )
        if kind == "image":
            return self.add_embedding(image_embeds)
        text_embeds = added_cond_kwargs.get("text_embeds", encoder_hidden_states)
        return self.add_embedding(text_embeds, image_embeds)

    def _down(
        self, x: Tensor, emb: Tensor, context: Context, adapter: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The first half; takes one residual per block from ``adapter`` while there are any."""
        skips = [x]
        for block in self.down_blocks:
            residual = adapter.pop(0) if adapter else None
            x, block_skips = block(x, emb, context, residual)
            skips += block_skips
        return x, skips

    def set_attention_slice(self, slice_size: str | int | Sequence[int] | None = "auto") -> None:
        """Bound the memory of attention; the result stays the same up to rounding.

        Args:
            slice_size: heads at a time: "auto" for half of them, "max" for one, a number, a
                number per attention layer, or None for all (the default).

        Raises:
            InputError: more heads than a layer has, or a list of another length.
        """
        layers = [layer for _, layer in self._attention_layers()]
        if slice_size == "auto":
            sizes = [max(layer.sliceable_head_dim // 2, 1) for layer in layers]
        elif slice_size == "max":
            sizes = [1] * len(layers)
        elif slice_size is None:
            sizes = [None] * len(layers)
        elif isinstance(slice_size, list | tuple):
            sizes = [None if size is None else _whole(size) for size in slice_size]
        else:
            sizes = [_whole(slice_size)] * len(layers)
        if len(sizes) != len(layers):
            raise InputError(
                f"slice_size has {len(sizes)} entries but there are {len(layers)} attention layers."
            )
        for layer, size in zip(layers, sizes, strict=True):
            layer.check_slice(size)
        for layer, size in zip(layers, sizes, strict=True):
            layer.set_attention_slice(size)


def _whole(slice_size: Any) -> int:
    """A size as ``int``, whatever kind of whole number it is."""
    try:
        return operator.index(slice_size)
    except TypeError:
        raise InputError(
            "slice_size has to be 'auto', 'max', a number or a number for each attention layer, not"
            f" {str(slice_size)[:80]!r}."
        ) from None


def each_timestep(sample: Tensor, timestep: Tensor | float) -> Tensor:
    """One timestep, or one per sample, as ``(N,)`` beside the sample."""
    if not isinstance(timestep, Tensor):
        # Fractional steps keep all their digits, except where there is no float64.
        half = sample.device.type in ("mps", "npu")
        floating = torch.float32 if half else torch.float64
        dtype = floating if isinstance(timestep, float) else torch.int64
        timestep = torch.tensor(timestep, dtype=dtype, device=sample.device)
    return timestep.to(sample.device).reshape(-1).expand(sample.shape[0])


def score_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask ``(N, S)`` of ones (keep) and zeros as a bias ``(N, 1, S)`` on scores."""
    return None if mask is None else ((1 - mask.to(dtype)) * MASKED).unsqueeze(1)


def added_condition(added: Mapping[str, Any], name: str, option: str) -> Any:
    """One of ``added_cond_kwargs`` that an option of the configuration needs."""
    if name not in added:
        raise InputError(f"A UNet with {option} needs `{name}` in `added_cond_kwargs`.")
    return added[name]
