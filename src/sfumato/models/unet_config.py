"""The UNet's configuration: its fields and their ranges.

`sfumato.models.unet_stages` resolves it into one description per block.
"""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.config import Config, check_choice, check_int
from sfumato.errors import ConfigError
from sfumato.models import checks, unet_stages
from sfumato.models.checks import MAX_CHANNELS, MAX_LAYERS, label
from sfumato.models.conventions import ACTIVATION_KINDS, CONTEXT_GROUPS
from sfumato.models.k_stages import K_DOWN_BLOCKS, K_UP_BLOCKS

TIME_ACTIVATIONS = (*ACTIVATION_KINDS, None)
CLASS_EMBED_TYPES = ("timestep", "identity", "projection", "simple_projection", None)
ADDITION_EMBED_TYPES = ("text", "text_image", "text_time", "image", None)
#: What diffusers says of a network while IP-Adapters are loaded; it changes no layer by itself.
IP_IMAGE_PROJ = "ip_image_proj"
ENCODER_HID_DIM_TYPES = ("text_proj", "text_image_proj", "image_proj", IP_IMAGE_PROJ, None)


@dataclass(frozen=True, kw_only=True)
class UNet2DConditionConfig(Config):
    """Fields and defaults of diffusers' ``UNet2DConditionModel``.

    ``attention_head_dim`` is the *number* of heads in blocks with transformers, and the width of
    a head elsewhere: a slip in diffusers that all published configurations rely on.
    """

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    )
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = (
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    )
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    dropout: float = 0.0
    act_fn: str = "silu"
    norm_num_groups: int | None = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1
    reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: None = None
    dual_cross_attention: bool = False
    use_linear_projection: bool = False
    class_embed_type: str | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    num_class_embeds: int | None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    time_embedding_act_fn: str | None = None
    timestep_post_act: str | None = None
    time_cond_proj_dim: int | None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    projection_class_embeddings_input_dim: int | None = None
    attention_type: str = "default"
    class_embeddings_concat: bool = False
    mid_block_only_cross_attention: bool | None = None
    cross_attention_norm: str | None = None
    addition_embed_type_num_heads: int = 64

    def validate(self) -> None:
        self._check_blocks()
        self._check_per_block()
        self._check_choices()
        self._check_numbers()
        self._check_embeddings()
        checks.check_size(self, unet_stages.resolve(self).parameters())

    def _check_blocks(self) -> None:
        if self.norm_num_groups is not None:
            checks.check_ints(self, ("norm_num_groups",), 1, MAX_CHANNELS)
        checks.check_channels(self, "block_out_channels", self.norm_num_groups)
        for name, allowed in (
            ("down_block_types", (*unet_stages.DOWN_BLOCKS, *K_DOWN_BLOCKS)),
            ("up_block_types", (*unet_stages.UP_BLOCKS, *K_UP_BLOCKS)),
        ):
            checks.check_tuple(self, name, len(self.block_out_channels))
            for kind in self[name]:
                check_choice(label(self, name), kind, allowed)
        check_choice(label(self, "mid_block_type"), self.mid_block_type, unet_stages.MID_BLOCKS)

    def _check_per_block(self) -> None:
        """Options that are given once or per block."""
        blocks = len(self.block_out_channels)
        for name, low, high in (
            ("layers_per_block", 1, MAX_LAYERS),
            ("cross_attention_dim", 1, MAX_CHANNELS),
            ("attention_head_dim", 1, MAX_CHANNELS),
            ("transformer_layers_per_block", 0, MAX_LAYERS),
            ("reverse_transformer_layers_per_block", 0, MAX_LAYERS),
        ):
            value = self[name]
            always_listed = name.startswith("reverse")
            if always_listed and value is None:
                continue
            if always_listed or isinstance(value, tuple):
                checks.check_tuple(self, name, blocks)
            for entry in unet_stages.each(value, 1):
                # Depths may be listed per layer.
                for number in unet_stages.each(entry, 1) if "transformer" in name else (entry,):
                    check_int(label(self, name), number, low, high)
        if isinstance(self.only_cross_attention, tuple):
            checks.check_tuple(self, "only_cross_attention", blocks)
        depths = unet_stages.each(self.transformer_layers_per_block, 1)
        nested = any(isinstance(depth, tuple) for depth in depths)
        if nested and self.reverse_transformer_layers_per_block is None:
            raise ConfigError(
                "`transformer_layers_per_block` lists depths per layer, so "
                "`reverse_transformer_layers_per_block` has to be given for the up blocks."
            )

    def _check_choices(self) -> None:
        for name, allowed in (
            ("act_fn", tuple(ACTIVATION_KINDS)),
            ("time_embedding_act_fn", TIME_ACTIVATIONS),
            ("timestep_post_act", TIME_ACTIVATIONS),
            ("time_embedding_type", ("positional", "fourier")),
            ("resnet_time_scale_shift", ("default", "scale_shift")),
            ("class_embed_type", CLASS_EMBED_TYPES),
            ("addition_embed_type", ADDITION_EMBED_TYPES),
            ("encoder_hid_dim_type", ENCODER_HID_DIM_TYPES),
            ("cross_attention_norm", ("layer_norm", "group_norm", None)),
            ("attention_type", ("default",)),
            ("mid_block_only_cross_attention", (True, False, None)),
        ):
            check_choice(label(self, name), self[name], allowed)
        if self.num_attention_heads is not None:
            raise ConfigError(
                "`num_attention_heads` cannot be set.",
                hint="Give the number of heads as `attention_head_dim`, as published models do.",
            )
        if self.dual_cross_attention is not False:
            raise ConfigError("`dual_cross_attention` has to be False: no known model uses it.")
        checks.check_flags(
            self,
            (
                "center_input_sample",
                "flip_sin_to_cos",
                "use_linear_projection",
                "upcast_attention",
                "resnet_skip_time_act",
                "class_embeddings_concat",
                "only_cross_attention",
            ),
        )

    def _check_numbers(self) -> None:
        checks.check_ints(self, ("in_channels", "out_channels"), 1, 4096)
        checks.check_ints(self, ("conv_in_kernel", "conv_out_kernel"), 1, 31)
        checks.check_ints(self, ("downsample_padding",), 0, 4)
        checks.check_ints(self, ("addition_embed_type_num_heads",), 1, MAX_CHANNELS)
        for name, high in (
            ("encoder_hid_dim", MAX_CHANNELS),
            ("addition_time_embed_dim", MAX_CHANNELS),
            ("num_class_embeds", 1_000_000),
            ("time_embedding_dim", 4 * MAX_CHANNELS),
            ("time_cond_proj_dim", MAX_CHANNELS),
            ("projection_class_embeddings_input_dim", 4 * MAX_CHANNELS),
        ):
            if self[name] is not None:
                check_int(label(self, name), self[name], 1, high)
        for size in unet_stages.each(self.sample_size, 1):
            if size is not None:
                check_int(label(self, "sample_size"), size, 1, 65_536)
        checks.check_number(self, "freq_shift", 0, max(self.block_out_channels[0] // 2 - 1, 0))
        checks.check_number(self, "mid_block_scale_factor", 1e-3, 1e3)
        checks.check_number(self, "resnet_out_scale_factor", 1e-3, 1e3)
        checks.check_number(self, "dropout", 0, 1)
        checks.check_number(self, "norm_eps", 0, 1)

    def _check_embeddings(self) -> None:
        """Options that need each other."""
        projects = self.encoder_hid_dim_type not in (None, IP_IMAGE_PROJ)
        needs_dim = projects or self.addition_embed_type == "image"
        self._require(needs_dim, "encoder_hid_dim")
        classes = self.class_embed_type in ("projection", "simple_projection")
        micro = self.addition_embed_type == "text_time"
        self._require(classes or micro, "projection_class_embeddings_input_dim")
        self._require(micro, "addition_time_embed_dim")
        single = self.encoder_hid_dim is not None or self.addition_embed_type in (
            "text",
            "text_image",
        )
        if single and isinstance(self.cross_attention_dim, tuple):
            raise ConfigError(
                "`cross_attention_dim` has to be a single number beside `encoder_hid_dim` or a "
                "text embedding."
            )
        if self.addition_embed_type == "text":
            width = self.encoder_hid_dim or self.cross_attention_dim
            heads = self.addition_embed_type_num_heads
            assert isinstance(width, int)
            if width % heads:
                raise ConfigError(
                    f"`addition_embed_type_num_heads` ({heads}) has to divide the width of the "
                    f"text embeddings ({width})."
                )
        self._check_context_norm()
        if self.time_embedding_type == "fourier" and (self.time_embedding_dim or 0) % 2:
            raise ConfigError(
                f"`time_embedding_dim` has to be even with fourier embeddings but is "
                f"{self.time_embedding_dim}."
            )

    def _check_context_norm(self) -> None:
        """The norm of the text in blocks that take no transformer to it."""
        widths = unet_stages.each(self.cross_attention_dim, 1)
        if self.cross_attention_norm == "group_norm" and any(w % CONTEXT_GROUPS for w in widths):
            raise ConfigError(
                f"`cross_attention_norm` 'group_norm' needs a `cross_attention_dim` divisible by "
                f"{CONTEXT_GROUPS} but it is {self.cross_attention_dim}."
            )

    def _require(self, condition: bool, name: str) -> None:
        if condition and self[name] is None:
            raise ConfigError(
                f"`{label(self, name)}` has to be given with "
                f"class_embed_type={self.class_embed_type!r}, "
                f"addition_embed_type={self.addition_embed_type!r}, "
                f"encoder_hid_dim_type={self.encoder_hid_dim_type!r}."
            )
