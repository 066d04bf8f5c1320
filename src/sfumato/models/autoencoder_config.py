"""The KL autoencoder's configuration: its fields and their ranges."""

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
        checks.check_ints(self, ("in_channels", "out_channels", "latent_channels"), 1, 1024)
        checks.check_ints(self, ("layers_per_block",), 1, checks.MAX_LAYERS)
        checks.check_ints(self, ("norm_num_groups",), 1, checks.MAX_CHANNELS)
        checks.check_channels(self, "block_out_channels", self.norm_num_groups)
        widths = (2 * w * w for w in self.block_out_channels)
        checks.check_size(self, 18 * self.layers_per_block * sum(widths))
        for name, allowed in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            checks.check_tuple(self, name, len(self.block_out_channels))
            for kind in self[name]:
                check_choice(checks.label(self, name), kind, allowed)
        check_choice(checks.label(self, "act_fn"), self.act_fn, tuple(ACTIVATION_KINDS))
        sizes = self.sample_size if isinstance(self.sample_size, tuple) else (self.sample_size,)
        for size in sizes or (None,):
            check_int(checks.label(self, "sample_size"), size, 1, 65_536)
        checks.check_number(self, "scaling_factor", 1e-6, 1e6)
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
