"""The UNet that predicts the noise in latents from a text: the heart of Stable Diffusion.

Configuration fields and weight names are diffusers'; the architecture is that of Rombach et al.
(arXiv:2112.10752) on the blocks of Dhariwal and Nichol (arXiv:2105.05233).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sfumato.adapters.network_methods import AdapterMethods
from sfumato.adapters.state import scaled_by_keyword
from sfumato.errors import InputError
from sfumato.models import ip_adapter, unet_stages
from sfumato.models.feature_reuse import features_now
from sfumato.models.fused import norm_act
from sfumato.models.image_projections import MultiIPAdapterImageProjection
from sfumato.models.k_blocks import KUpBlock
from sfumato.models.k_stages import KStage
from sfumato.models.layers import get_activation
from sfumato.models.processors import TextAndPictures
from sfumato.models.transformer import Context
from sfumato.models.unet_blocks import UpBlock
from sfumato.models.unet_config import UNet2DConditionConfig
from sfumato.models.unet_encoder import UNetEncoder, added_condition, score_bias
from sfumato.outputs import BaseOutput


@dataclass
class UNet2DConditionOutput(BaseOutput):
    """What the UNet returns: its prediction ``(N, out_channels, H, W)``."""

    sample: Tensor


class UNet2DConditionModel(UNetEncoder[UNet2DConditionConfig], AdapterMethods):
    """A UNet conditioned on time, text tokens and, by configuration, on classes or images."""

    config_class = UNet2DConditionConfig
    adapter_prefix = "unet"

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        c = self.config
        widths = c.block_out_channels
        self._build_encoder(c)
        self.text_encoder_hid_proj: nn.Module | None = None  # while IP-Adapters take that place
        stages, width = unet_stages.resolve(c), unet_stages.block_width(c)
        self.up_blocks = nn.ModuleList(
            KUpBlock(stage, c, width) if isinstance(stage, KStage) else UpBlock(stage, c, width)
            for stage in stages.up
        )
        self._build_middle(c)
        self.conv_norm_out = self.conv_act = None
        if c.norm_num_groups is not None:
            self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, widths[0], eps=c.norm_eps)
            self.conv_act = get_activation(c.act_fn)
        self.conv_out = nn.Conv2d(
            widths[0], c.out_channels, c.conv_out_kernel, padding=(c.conv_out_kernel - 1) // 2
        )

    def _unet_config(self) -> UNet2DConditionConfig:
        return self.config

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
            score_bias(attention_mask, sample.dtype),
            score_bias(encoder_attention_mask, sample.dtype),
            {k: v for k, v in (cross_attention_kwargs or {}).items() if k != "scale"},
        )
        adapter = list(down_intrablock_additional_residuals or ())
        control, control_mid = down_block_additional_residuals, mid_block_additional_residual
        if control is not None and control_mid is None and not adapter:
            # T2I-Adapters once came through the argument of ControlNets.
            adapter = list(control)

        x, reused = self.conv_in(sample), features_now()
        if reused is not None and reused.shallow:
            x = reused.finish(self, x, emb, context, control or ())
        else:
            x = self._deep(x, emb, context, adapter, control, control_mid)
        if self.conv_norm_out is not None and self.conv_act is not None:
            x = norm_act(self.conv_norm_out, self.conv_act, x)
        x = self.conv_out(x)
        return UNet2DConditionOutput(x) if return_dict else (x,)

    def _deep(
        self,
        x: Tensor,
        emb: Tensor,
        context: Context,
        adapter: list[Tensor],
        control: Sequence[Tensor] | None,
        control_mid: Tensor | None,
    ) -> Tensor:
        """From the first features ``x`` to the last ones, with the residuals of other networks."""
        x, skips = self._down(x, emb, context, adapter)
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
        return self._up(x, skips, emb, context)

    def _up(self, x: Tensor, skips: list[Tensor], emb: Tensor, context: Context) -> Tensor:
        """The second half, which uses up the skips from the last to the first."""
        reused, last = features_now(), self.up_blocks[-1] if len(self.up_blocks) else None
        for block in self.up_blocks:
            assert isinstance(block, UpBlock | KUpBlock)
            start = len(skips) - len(block.resnets)
            skips, own = skips[:start], skips[start:]
            size = (skips[-1].shape[-2], skips[-1].shape[-1]) if skips else None
            if reused is not None and block is last and isinstance(block, UpBlock):
                x = block(x, own, emb, context, size, reused.watch)
            else:
                x = block(x, own, emb, context, size)
        return x

    def process_encoder_hidden_states(
        self, encoder_hidden_states: Tensor, added_cond_kwargs: Mapping[str, Any]
    ) -> Tensor | TextAndPictures:
        """The tokens that cross-attention looks at; see ``encoder_hid_dim_type``."""
        kind = self.config.encoder_hid_dim_type
        if self.encoder_hid_proj is None:
            return encoder_hidden_states
        if isinstance(self.encoder_hid_proj, MultiIPAdapterImageProjection):
            image_embeds = added_condition(
                added_cond_kwargs, "image_embeds", f"IP-Adapters (encoder_hid_dim_type={kind!r})"
            )
            return self._with_pictures(encoder_hidden_states, self.encoder_hid_proj(image_embeds))
        if kind in ("text_image_proj", "image_proj"):
            image_embeds = added_condition(
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
            if isinstance(block, UpBlock):
                block.s1, block.s2, block.b1, block.b2 = s1, s2, b1, b2
