"""The configuration of ControlNets, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.config import Config, check_choice
from sfumato.models import checks
from sfumato.models.unet_config import UNet2DConditionConfig


@dataclass(frozen=True, kw_only=True)
class ControlNetConfig(Config):
    """Fields and defaults of diffusers' ``ControlNetModel``; most are those of the UNet."""

    in_channels: int = 4
    conditioning_channels: int = 3
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    )
    mid_block_type: str = "UNetMidBlock2DCrossAttn"
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: None = None
    use_linear_projection: bool = False
    class_embed_type: str | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    num_class_embeds: int | None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: str = "default"
    projection_class_embeddings_input_dim: int | None = None
    controlnet_conditioning_channel_order: str = "rgb"
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    global_pool_conditions: bool = False
    addition_embed_type_num_heads: int = 64

    def validate(self) -> None:
        order = self.controlnet_conditioning_channel_order
        check_choice("controlnet_conditioning_channel_order", order, ("rgb", "bgr"))
        check_choice(
            "mid_block_type", self.mid_block_type, ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")
        )
        checks.check_ints(self, ("conditioning_channels",), 1, 4096)
        for name in ("block_out_channels", "conditioning_embedding_out_channels"):
            checks.check_channels(self, name, None)
        checks.check_ints(self, ("layers_per_block", "cross_attention_dim"), 1, checks.MAX_CHANNELS)
        checks.check_flags(self, ("global_pool_conditions",))
        self.as_unet()  # checks the rest

    def as_unet(self) -> UNet2DConditionConfig:
        """The configuration of a UNet with the same first half."""
        shared = set(UNet2DConditionConfig.__dataclass_fields__) & set(self)
        fields = {name: self[name] for name in shared}
        mirrored = ("UpBlock2D",) * len(self.block_out_channels)
        return UNet2DConditionConfig(**fields, up_block_types=mirrored)
