"""The configurations of first stages, KL and VQ: their fields and ranges."""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.config import Config, check_choice, check_int
from sfumato.errors import ConfigError
from sfumato.models import checks
from sfumato.models.conventions import ACTIVATION_KINDS

DOWN_BLOCKS = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP_BLOCKS = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig(Config):
    """Fields and defaults of diffusers' ``AutoencoderKL``.

    ``scaling_factor`` and ``shift_factor`` (and ``latents_mean``, ``latents_std`` per channel)
    describe the latents to the pipelines; the network itself does not apply them.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def validate(self) -> None:
        _check_halves(self)
        if self.shift_factor is not None:
            checks.check_number(self, "shift_factor", -1e6, 1e6)
        for name in ("latents_mean", "latents_std"):
            values = self[name]
            if values is not None and (
                not isinstance(values, tuple) or len(values) != self.latent_channels
            ):
                raise ConfigError(
                    f"`{checks.label(self, name)}` has to be a list with one number per latent "
                    f"channel ({self.latent_channels})."
                )
        checks.check_flags(
            self,
            ("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"),
        )


@dataclass(frozen=True, kw_only=True)
class VQModelConfig(Config):
    """Fields and defaults of diffusers' ``VQModel``.

    ``scaling_factor`` describes the latents to the pipelines. The paper's models with a codebook
    do not scale them: for those it is 1, whatever the default.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 3
    sample_size: int | tuple[int, ...] = 32
    num_vq_embeddings: int = 256
    norm_num_groups: int = 32
    vq_embed_dim: int | None = None
    scaling_factor: float = 0.18215
    norm_type: str = "group"
    mid_block_add_attention: bool = True
    lookup_from_codebook: bool = False
    force_upcast: bool = False

    def validate(self) -> None:
        _check_halves(self)
        checks.check_ints(self, ("num_vq_embeddings",), 1, 2**24)
        if self.vq_embed_dim is not None:
            checks.check_ints(self, ("vq_embed_dim",), 1, 1024)
        checks.check_size(self, self.num_vq_embeddings * self.codebook_width)
        if self.norm_type == "spatial":
            raise ConfigError(
                "`VQModelConfig.norm_type` 'spatial' is that of MOVQ decoders (Kandinsky).",
                hint="First stages of latent diffusion have norm_type='group'.",
            )
        check_choice(checks.label(self, "norm_type"), self.norm_type, ("group",))
        checks.check_flags(
            self, ("force_upcast", "lookup_from_codebook", "mid_block_add_attention")
        )

    @property
    def codebook_width(self) -> int:
        """Channels of a vector of the codebook, which are those of the latents outside."""
        return self.latent_channels if self.vq_embed_dim is None else self.vq_embed_dim


def _check_halves(c: AutoencoderKLConfig | VQModelConfig) -> None:
    """The fields that describe the encoder and the decoder."""
    checks.check_ints(c, ("in_channels", "out_channels", "latent_channels"), 1, 1024)
    checks.check_ints(c, ("layers_per_block",), 1, checks.MAX_LAYERS)
    checks.check_ints(c, ("norm_num_groups",), 1, checks.MAX_CHANNELS)
    checks.check_channels(c, "block_out_channels", c.norm_num_groups)
    widths = (2 * w * w for w in c.block_out_channels)
    checks.check_size(c, 18 * c.layers_per_block * sum(widths))
    for name, allowed in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        checks.check_tuple(c, name, len(c.block_out_channels))
        for kind in c[name]:
            check_choice(checks.label(c, name), kind, allowed)
    check_choice(checks.label(c, "act_fn"), c.act_fn, tuple(ACTIVATION_KINDS))
    sizes = c.sample_size if isinstance(c.sample_size, tuple) else (c.sample_size,)
    for size in sizes or (None,):
        check_int(checks.label(c, "sample_size"), size, 1, 65_536)
    checks.check_number(c, "scaling_factor", 1e-6, 1e6)
