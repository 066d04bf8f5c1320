"""The UNet that predicts the noise in latents from a text: the heart of Stable Diffusion.

Configuration fields and weight names are diffusers'; the architecture is that of Rombach et al.
(arXiv:2112.10752) on the blocks of Dhariwal and Nichol (arXiv:2105.05233).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.adapters.network_methods import AdapterMethods
from sfumato.adapters.state import scaled_by_keyword
from sfumato.errors import InputError
from sfumato.models import ip_adapter, unet_stages
from sfumato.models import unet_conditioning as conditioning
from sfumato.models.attention_model import AttentionModel
from sfumato.models.embeddings import TimestepEmbedding
from sfumato.models.image_projections import MultiIPAdapterImageProjection
from sfumato.models.layers import get_activation
from sfumato.models.processors import TextAndPictures
from sfumato.models.transformer import Context
from sfumato.models.unet_blocks import DownBlock, MidBlock, UpBlock
from sfumato.models.unet_config import UNet2DConditionConfig
from sfumato.outputs import BaseOutput

#: Added to the score of a masked token; as in diffusers, rather than minus infinity.
MASKED = -10_000.0


@dataclass
class UNet2DConditionOutput(BaseOutput):
    """What the UNet returns: its prediction ``(N, out_channels, H, W)``."""

    sample: Tensor


class UNet2DConditionModel(AttentionModel[UNet2DConditionConfig], AdapterMethods):
    """A UNet conditioned on time, text tokens and, by configuration, on classes or images."""

    config_class = UNet2DConditionConfig
    adapter_prefix = "unet"

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        c = self.config
        widths = c.block_out_channels
        self.conv_in = nn.Conv2d(
            c.in_channels, widths[0], c.conv_in_kernel, padding=(c.conv_in_kernel - 1) // 2
        )
        time_dim = conditioning.time_width(c)
        self.time_proj, waves = conditioning.time_projection(c)
        self.time_embedding = TimestepEmbedding(
            waves,
            time_dim,
            act_fn=c.act_fn,
            post_act_fn=c.timestep_post_act,
            cond_proj_dim=c.time_cond_proj_dim,
        )
        self.encoder_hid_proj = conditioning.text_projection(c)
        self.text_encoder_hid_proj: nn.Module | None = None  # while IP-Adapters take that place
        self.class_embedding = conditioning.class_embedding(c, waves, time_dim)
        if c.addition_time_embed_dim is not None and c.addition_embed_type == "text_time":
            self.add_time_proj = conditioning.sinusoids(c, c.addition_time_embed_dim)
        self.add_embedding = conditioning.addition_embedding(c, time_dim)
        act = c.time_embedding_act_fn
        self.time_embed_act = None if act is None else get_activation(act)

        stages = unet_stages.resolve(c)
        block_dim = 2 * time_dim if c.class_embeddings_concat else time_dim
        self.down_blocks = nn.ModuleList(DownBlock(s, c, block_dim) for s in stages.down)
        self.up_blocks = nn.ModuleList(UpBlock(s, c, block_dim) for s in stages.up)
        self.mid_block = None if stages.mid is None else MidBlock(stages.mid, c, block_dim)
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, widths[0], eps=c.norm_eps)
        self.conv_act = get_activation(c.act_fn)
        self.conv_out = nn.Conv2d(
            widths[0], c.out_channels, c.conv_out_kernel, padding=(c.conv_out_kernel - 1) // 2
        )

    @scaled_by_keyword
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[Tensor] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predict.

        Args:
            sample: noisy latents ``(N, in_channels, H, W)``; H and W need not be multiples of
                anything.
            timestep: one number, or one per sample.
            encoder_hidden_states: text tokens ``(N, S, cross_attention_dim)``, or as wide as
                ``encoder_hid_dim``.
            class_labels: ``(N,)`` numbers of classes or times, or ``(N, C)`` embeddings, as the
                configuration's ``class_embed_type`` wants them.
            timestep_cond: ``(N, time_cond_proj_dim)``, the embedded guidance scale of LCMs.
            attention_mask: ``(N, L)``, 0 for pixels that self-attention leaves out.
            cross_attention_kwargs: for the attention processors. ``scale`` multiplies the
                strengths of adapters and goes no further.
            added_cond_kwargs: ``image_embeds``, or ``text_embeds`` and ``time_ids``, as the
                configuration's ``addition_embed_type`` wants them. With IP-Adapters,
                ``image_embeds`` is a list of ``(N, pictures, ...)``, one per adapter.
            down_block_additional_residuals, mid_block_additional_residual: from a ControlNet,
                one per skip and one for the middle.
            down_intrablock_additional_residuals: from a T2I-Adapter, one per down block.
            encoder_attention_mask: ``(N, S)``, 0 for text tokens that are left out.
            return_dict: return an output object rather than a tuple.

        Raises:
            InputError: an input that the configuration needs is missing.
        """
        added = added_cond_kwargs or {}
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0
        emb = self._embed(
            sample, timestep, encoder_hidden_states, class_labels, timestep_cond, added
        )
        context = Context(
            self.process_encoder_hidden_states(encoder_hidden_states, added),
            _score_bias(attention_mask, sample.dtype),
            _score_bias(encoder_attention_mask, sample.dtype),
            {k: v for k, v in (cross_attention_kwargs or {}).items() if k != "scale"},
        )
        adapter = list(down_intrablock_additional_residuals or ())
        control, control_mid = down_block_additional_residuals, mid_block_additional_residual
        if control is not None and control_mid is None and not adapter:
            # T2I-Adapters once came through the argument of ControlNets.
            adapter = list(control)

        x, skips = self._down(self.conv_in(sample), emb, context, adapter)
        if control is not None and control_mid is not None:
            if len(control) != len(skips):
                raise InputError(
                    f"down_block_additional_residuals has {len(control)} entries but the UNet has "
                    f"{len(skips)} skips."
                )
            skips = [a + b for a, b in zip(skips, control, strict=True)]
        if self.mid_block is not None:
            x = self.mid_block(x, emb, context)
            if adapter and x.shape == adapter[0].shape:
                x = x + adapter.pop(0)
        if control is not None and control_mid is not None:
            x = x + control_mid
        x = self._up(x, skips, emb, context)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return UNet2DConditionOutput(x) if return_dict else (x,)

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

    def _up(self, x: Tensor, skips: list[Tensor], emb: Tensor, context: Context) -> Tensor:
        """The second half, which uses up the skips from the last to the first."""
        for block in self.up_blocks:
            assert isinstance(block, UpBlock)
            start = len(skips) - len(block.resnets)
            skips, own = skips[:start], skips[start:]
            size = (skips[-1].shape[-2], skips[-1].shape[-1]) if skips else None
            x = block(x, own, emb, context, size)
        return x

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
        if class_emb is not None and self.config.class_embeddings_concat:
            emb = torch.cat([emb, class_emb], dim=-1)
        elif class_emb is not None:
            emb = emb + class_emb
        aug_emb = self.get_aug_embed(emb, text, added)
        if aug_emb is not None:
            emb = emb + aug_emb
        return emb if self.time_embed_act is None else self.time_embed_act(emb)

    def get_time_embed(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """Waves ``(N, C)`` of one timestep, or of one per sample, in the type of ``sample``."""
        if not isinstance(timestep, Tensor):
            # Fractional steps keep all their digits, except where there is no float64.
            half = sample.device.type in ("mps", "npu")
            floating = torch.float32 if half else torch.float64
            dtype = floating if isinstance(timestep, float) else torch.int64
            timestep = torch.tensor(timestep, dtype=dtype, device=sample.device)
        timesteps = timestep.to(sample.device).reshape(-1).expand(sample.shape[0])
        return self.time_proj(timesteps).to(sample.dtype)

    def get_class_embed(self, sample: Tensor, class_labels: Tensor | None) -> Tensor | None:
        """The class embedding ``(N, C)``, or None for a model without classes."""
        if self.class_embedding is None:
            return None
        if class_labels is None:
            raise InputError("class_labels should be provided when num_class_embeds > 0")
        if self.config.class_embed_type == "timestep":
            class_labels = self.time_proj(class_labels).to(sample.dtype)
        return self.class_embedding(class_labels).to(sample.dtype)

    def get_aug_embed(
        self, emb: Tensor, encoder_hidden_states: Tensor, added_cond_kwargs: Mapping[str, Tensor]
    ) -> Tensor | None:
        """What is added to the time embedding ``emb``, or None; see ``addition_embed_type``."""
        kind = self.config.addition_embed_type
        if self.add_embedding is None:
            return None
        if kind == "text":
            return self.add_embedding(encoder_hidden_states)
        if kind == "text_time":
            text_embeds = _added(added_cond_kwargs, "text_embeds", f"addition_embed_type={kind!r}")
            time_ids = _added(added_cond_kwargs, "time_ids", f"addition_embed_type={kind!r}")
            waves = self.add_time_proj(time_ids.flatten()).reshape(text_embeds.shape[0], -1)
            return self.add_embedding(torch.cat([text_embeds, waves], dim=-1).to(emb.dtype))
        image_embeds = _added(added_cond_kwargs, "image_embeds", f"addition_embed_type={kind!r}")
        if kind == "image":
            return self.add_embedding(image_embeds)
        text_embeds = added_cond_kwargs.get("text_embeds", encoder_hidden_states)
        return self.add_embedding(text_embeds, image_embeds)

    def process_encoder_hidden_states(
        self, encoder_hidden_states: Tensor, added_cond_kwargs: Mapping[str, Any]
    ) -> Tensor | TextAndPictures:
        """The tokens that cross-attention looks at; see ``encoder_hid_dim_type``."""
        kind = self.config.encoder_hid_dim_type
        if self.encoder_hid_proj is None:
            return encoder_hidden_states
        if isinstance(self.encoder_hid_proj, MultiIPAdapterImageProjection):
            image_embeds = _added(
                added_cond_kwargs, "image_embeds", f"IP-Adapters (encoder_hid_dim_type={kind!r})"
            )
            return self._with_pictures(encoder_hidden_states, self.encoder_hid_proj(image_embeds))
        if kind in ("text_image_proj", "image_proj"):
            image_embeds = _added(
                added_cond_kwargs, "image_embeds", f"encoder_hid_dim_type={kind!r}"
            )
            if kind == "image_proj":
                return self.encoder_hid_proj(image_embeds)
            return self.encoder_hid_proj(encoder_hidden_states, image_embeds)
        return self.encoder_hid_proj(encoder_hidden_states)

    def _with_pictures(self, text: Tensor, pictures: list[Tensor]) -> TextAndPictures:
        """The context of a network with IP-Adapters."""
        for tokens in pictures:
            if len(tokens) != len(text):
                raise InputError(
                    f"`image_embeds` is for a batch of {len(tokens)}, but the text for {len(text)}."
                )
        if self.text_encoder_hid_proj is not None:
            text = self.text_encoder_hid_proj(text)
        return text, pictures

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
        elif isinstance(slice_size, int) or slice_size is None:
            sizes = [slice_size] * len(layers)
        elif isinstance(slice_size, str):
            raise InputError(f"slice_size has to be 'auto', 'max' or a number, not {slice_size!r}.")
        else:
            sizes = list(slice_size)
        if len(sizes) != len(layers):
            raise InputError(
                f"slice_size has {len(sizes)} entries but there are {len(layers)} attention layers."
            )
        for layer, size in zip(layers, sizes, strict=True):
            layer.check_slice(size)
        for layer, size in zip(layers, sizes, strict=True):
            layer.set_attention_slice(size)

    @property
    def own_config(self) -> UNet2DConditionConfig:
        """The configuration without IP-Adapters."""
        return ip_adapter.own_config(self)

    def own_state(self) -> dict[str, Tensor]:
        """The ``state_dict`` without IP-Adapters."""
        return ip_adapter.own_state(self)

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Reweigh backbone and skips in the first two up blocks; see `sfumato.models.freeu`.

        Args:
            s1, s2: factors on the skips' low frequencies in the first and second block.
            b1, b2: factors on the backbone's features there.
        """
        self._set_freeu(s1, s2, b1, b2)

    def disable_freeu(self) -> None:
        """Undo `enable_freeu`."""
        self._set_freeu(None, None, None, None)

    def _set_freeu(
        self, s1: float | None, s2: float | None, b1: float | None, b2: float | None
    ) -> None:
        for block in self.up_blocks:
            assert isinstance(block, UpBlock)
            block.s1, block.s2, block.b1, block.b2 = s1, s2, b1, b2


def _score_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask ``(N, S)`` of ones (keep) and zeros as a bias ``(N, 1, S)`` on scores."""
    return None if mask is None else ((1 - mask.to(dtype)) * MASKED).unsqueeze(1)


def _added(added: Mapping[str, Any], name: str, option: str) -> Any:
    if name not in added:
        raise InputError(f"A UNet with {option} needs `{name}` in `added_cond_kwargs`.")
    return added[name]
