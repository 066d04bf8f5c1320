"""The YAML files that go with original checkpoints, as configurations of today.

Only sizes and switches are taken from such a file: the class names in it (``target``) are text to
compare with, and nothing is imported. YAML is read by PyYAML's safe loader, JSON without it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from sfumato.checkpoints.files import open_regular, shown
from sfumato.errors import ConfigError, MissingDependencyError

#: The published files have 2 kB; PyYAML needs seconds for a megabyte.
_MAX_BYTES = 128 * 1024

#: Groups of every norm of the original code.
_GROUPS = 32

#: The original code's names of noise schedules; its "linear" is linear in the square root.
_BETA_SCHEDULES = {
    "linear": "scaled_linear",
    "sqrt_linear": "linear",
    "cosine": "squaredcos_cap_v2",
}
_PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


@dataclass(frozen=True, kw_only=True)
class OriginalConfig:
    """What such a file says; an empty mapping where it says nothing.

    Attributes:
        unet, vae, scheduler: fields of the configurations of today.
        prediction_type: what the network predicts, as schedulers have it.
        last_layer: the text encoder is used up to its last layer, not the last but one.
        settings: of the pipeline.
    """

    unet: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    prediction_type: str | None = None
    last_layer: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_original_config(given: Any) -> OriginalConfig:
    """Read an original configuration.

    Args:
        given: path of a YAML or JSON file, its content as bytes or as an open file, or the
            dictionary that it holds.

    Raises:
        ConfigError: it cannot be parsed, or does not describe such a model.
        CheckpointError: the path is no readable file.
        MissingDependencyError: it is YAML and PyYAML is not installed.
    """
    if isinstance(given, Mapping):
        return _translate(given, "The original configuration")
    if isinstance(given, io.IOBase | bytes):
        raw = given if isinstance(given, bytes) else given.read(_MAX_BYTES + 1)
        where = "The original configuration"
    elif isinstance(given, str | PathLike):
        text = str(given)
        if text.startswith(("http://", "https://")):
            raise ConfigError(
                f"`original_config` is the address {text[:120]!r}; sfumato fetches nothing from "
                "there.",
                hint="Download the file and give its path. Those of Stability AI and CompVis are "
                "not needed: sfumato has their content.",
            )
        with open_regular(given) as file:
            raw = file.read(_MAX_BYTES + 1)
        where = shown(given)
    else:
        raise ConfigError(f"`original_config` has to be a path but is {type(given).__name__}.")
    raw = raw.encode() if isinstance(raw, str) else raw
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"{where} is too large for a configuration.")
    return _translate(_parse(raw, where), where)


def _parse(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        pass  # YAML then, of which JSON is a part
    try:
        import yaml
    except ImportError:
        raise MissingDependencyError(
            f"{where} is YAML, and reading that needs PyYAML.",
            hint="Run `pip install 'sfumato[yaml]'`, or give the configuration as JSON.",
        ) from None

    class Loader(yaml.SafeLoader):
        """Without references, by which a few lines can stand for more than any memory holds."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ConfigError(f"{where} has references (`*name`), which are not supported.")
            return super().compose_node(parent, index)

    try:
        return yaml.load(raw, Loader)  # a safe one
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(f"{where} is no YAML that can be read: {first[:200]}.") from None


class _Section:
    """A part of the file; asking it checks types, so that no surprise comes later."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where} has to be a table of names and values.")
        self.values, self.where = values, where

    def section(self, name: str) -> _Section:
        return _Section(self.values.get(name), f"{self.where}: `{name}`")

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def integer(self, name: str) -> int:
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
            raise ConfigError(f"{self.where}: `{name}` has to be an integer, not {_short(value)}.")
        return value

    def integers(self, name: str) -> list[int]:
        value = self.values.get(name)
        if not isinstance(value, list) or not 1 <= len(value) <= 16:
            raise ConfigError(f"{self.where}: `{name}` has to be a list, not {_short(value)}.")
        return [_Section({name: v}, self.where).integer(name) for v in value]

    def number(self, name: str) -> float:
        value = self.values.get(name)
        try:
            if isinstance(value, bool):
                raise TypeError
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            message = f"{self.where}: `{name}` has to be a number, not {_short(value)}."
            raise ConfigError(message) from None

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str):
            raise ConfigError(f"{self.where}: `{name}` has to be text, not {_short(value)}.")
        return value


def _short(value: Any) -> str:
    return "absent" if value is None else type(value).__name__


def _translate(values: Any, where: str) -> OriginalConfig:
    params = _Section(values, where).section("model").section("params")
    network = "unet_config" if params.has("unet_config") else "network_config"
    if params.has("ddconfig"):  # of a first stage alone
        return OriginalConfig(vae=_vae(params))
    unet = _unet(params.section(network).section("params"))
    vae = _vae(params)
    spread = 2 ** (len(vae["block_out_channels"]) - 1) if vae else 8
    prediction = (
        _PREDICTIONS.get(params.text("parameterization"))
        if (params.has("parameterization"))
        else "epsilon"
    )
    if prediction is None:
        known = ", ".join(_PREDICTIONS)
        raise ConfigError(f"{where}: `parameterization` has to be one of {known}.")
    newer = unet.get("cross_attention_dim") == 1024 and "num_class_embeds" not in unet
    if newer and prediction == "v_prediction":
        unet["sample_size"] = 768 // spread  # their files say 64, whatever the model's size
    elif params.has("image_size"):
        unet["sample_size"] = params.integer("image_size")
    settings: dict[str, Any] = {}
    if params.has("low_scale_config"):
        scale = params.section("low_scale_config").section("params")
        settings["max_noise_level"] = scale.integer("max_noise_level")
    return OriginalConfig(
        unet=unet,
        vae=vae,
        scheduler=_scheduler(params),
        prediction_type=prediction,
        last_layer=_uses_last_layer(params),
        settings=settings,
    )


def _unet(unet: _Section) -> dict[str, Any]:
    width, multiples = unet.integer("model_channels"), unet.integers("channel_mult")
    widths = [width * multiple for multiple in multiples]
    where = set(unet.integers("attention_resolutions"))
    attends = [2**level in where for level in range(len(widths))]
    if not unet.values.get("use_spatial_transformer", unet.has("context_dim")):
        return _plain_unet(unet, widths, attends)
    context = unet.values.get("context_dim")
    context = context[0] if isinstance(context, list) and context else context
    depth = unet.values.get("transformer_depth", 1)
    config: dict[str, Any] = {
        "in_channels": unet.integer("in_channels"),
        "out_channels": unet.integer("out_channels"),
        "block_out_channels": widths,
        "layers_per_block": unet.values.get("num_res_blocks"),
        "cross_attention_dim": context,
        "transformer_layers_per_block": 1 if depth is None else depth,
        "use_linear_projection": bool(unet.values.get("use_linear_in_transformer", False)),
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
    }
    if unet.has("num_head_channels") and unet.integer("num_head_channels") > 0:
        channels = unet.integer("num_head_channels")
        config["attention_head_dim"] = [max(1, w // channels) for w in widths]
    elif unet.has("num_heads"):
        config["attention_head_dim"] = unet.integer("num_heads")
    if unet.has("disable_self_attentions"):
        config["only_cross_attention"] = unet.values["disable_self_attentions"]
    classes = unet.values.get("num_classes")
    if classes == "sequential":
        config["class_embed_type"] = "projection"
        config["projection_class_embeddings_input_dim"] = unet.integer("adm_in_channels")
    elif classes is not None:
        config["num_class_embeds"] = unet.integer("num_classes")
    return config


def _plain_unet(unet: _Section, widths: list[int], attends: list[bool]) -> dict[str, Any]:
    """A UNet that knows no tokens: a `UNet2DModel`."""
    by_resnet = bool(unet.values.get("resblock_updown", False))
    scales = bool(unet.values.get("use_scale_shift_norm", False))
    plain = "Resnet{}sampleBlock2D" if by_resnet else "{}Block2D"
    if unet.has("num_head_channels") and unet.integer("num_head_channels") > 0:
        heads: Any = unet.integer("num_head_channels")
    else:
        count = max(unet.integer("num_heads"), 1) if unet.has("num_heads") else 1
        heads = [max(width // count, 1) for width in widths]
    config = {
        "in_channels": unet.integer("in_channels"),
        "out_channels": unet.integer("out_channels"),
        "block_out_channels": widths,
        "layers_per_block": unet.values.get("num_res_blocks"),
        "down_block_types": ["AttnDownBlock2D" if a else plain.format("Down") for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else plain.format("Up") for a in attends[::-1]],
        "attention_head_dim": heads,
        "downsample_type": "resnet" if by_resnet else "conv",
        "upsample_type": "resnet" if by_resnet else "conv",
        "resnet_time_scale_shift": "scale_shift" if scales else "default",
        "attn_norm_num_groups": _GROUPS if scales else None,
    }
    if unet.has("num_classes"):
        config["num_class_embeds"] = unet.integer("num_classes")
    return config


def _vae(params: _Section) -> dict[str, Any]:
    """The first stage, from a whole model's file or from its own."""
    if params.has("first_stage_config"):
        stage = params.section("first_stage_config").section("params")
    elif params.has("ddconfig"):
        stage = params
    else:
        return {}
    vae = stage.section("ddconfig")
    widths = [vae.integer("ch") * multiple for multiple in vae.integers("ch_mult")]
    where = vae.integers("attn_resolutions") if vae.values.get("attn_resolutions") else []
    side = vae.integer("resolution") if where else 0
    attends = [side // 2**level in where for level in range(len(widths))] if where else []
    down = ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends]
    up = ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in attends[::-1]]
    config: dict[str, Any] = {
        "in_channels": vae.integer("in_channels"),
        "out_channels": vae.integer("out_ch"),
        "latent_channels": vae.integer("z_channels"),
        "block_out_channels": widths,
        "layers_per_block": vae.integer("num_res_blocks"),
        "down_block_types": down or ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": up or ["UpDecoderBlock2D"] * len(widths),
    }
    if vae.values.get("attn_type") == "none":
        config["mid_block_add_attention"] = False
    if stage.has("n_embed"):
        config["num_vq_embeddings"] = stage.integer("n_embed")
        config["vq_embed_dim"] = stage.integer("embed_dim")
    if params.has("scale_factor"):
        config["scaling_factor"] = params.number("scale_factor")
    return config


def _scheduler(params: _Section) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if params.has("timesteps"):
        config["num_train_timesteps"] = params.integer("timesteps")
    if params.has("linear_start"):
        config["beta_start"] = params.number("linear_start")
    if params.has("linear_end"):
        config["beta_end"] = params.number("linear_end")
    kind = params.values.get("beta_schedule", "linear")
    if not isinstance(kind, str) or kind not in _BETA_SCHEDULES:
        known = ", ".join(_BETA_SCHEDULES)
        raise ConfigError(
            f"{params.where}: `beta_schedule` has to be one of {known}, not {str(kind)[:40]!r}."
        )
    return config | {"beta_schedule": _BETA_SCHEDULES[kind]}


def _uses_last_layer(params: _Section) -> bool:
    if not isinstance(params.values.get("cond_stage_config"), Mapping):  # the paper has marks there
        return False
    stage = params.section("cond_stage_config").values.get("params")
    return isinstance(stage, Mapping) and stage.get("layer") == "last"
