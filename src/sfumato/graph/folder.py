"""A text-to-image model in a folder, read without torch: configurations, weights, tokenizer.

`sfumato.checkpoints.folders` is the same for torch, and takes more kinds of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.checkpoints.arrays import StoredTensor, read_weight_files
from sfumato.checkpoints.model_index import ModelIndex, read_model_index
from sfumato.checkpoints.places import read_config
from sfumato.checkpoints.weight_files import DEFAULT_BASE, find_weights
from sfumato.errors import InputError, WeightsMismatchError
from sfumato.graph.unet import supported_stages
from sfumato.models.autoencoder_config import AutoencoderKLConfig
from sfumato.models.legacy import rename_legacy_keys
from sfumato.models.unet_config import UNet2DConditionConfig
from sfumato.text.clip_config import CLIPTextConfig
from sfumato.text.tokenizer import CLIPTokenizer

#: The classes that there are functions for.
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
#: Components that are no matter of drawing, unless they are there.
_ABSENT = ("safety_checker", "image_encoder")


@dataclass(frozen=True)
class ModelFolder:
    """What a folder says, besides its weights.

    Attributes:
        path: the folder.
        unet_config, vae_config, text_config: of the networks.
        tokenizer: of the text encoder.
        scheduler: the model's own; nothing of it is a tensor until asked.
    """

    path: Path
    unet_config: UNet2DConditionConfig
    vae_config: AutoencoderKLConfig
    text_config: CLIPTextConfig
    tokenizer: CLIPTokenizer
    scheduler: Any

    def weights(self, component: str) -> dict[str, StoredTensor]:
        """The weights of a component by diffusers' names.

        Raises:
            CheckpointError: there are none in safetensors, or the files are damaged.
        """
        base = "model" if component == "text_encoder" else DEFAULT_BASE
        files = find_weights(
            self.path / component, {True: base, False: base}, root=self.path, use_safetensors=True
        )
        arrays = rename_legacy_keys(read_weight_files(files))
        if component == "unet":
            _check_widths(self.unet_config, arrays)
        return arrays


def read_model_folder(path: Path) -> ModelFolder:
    """Read a folder in diffusers' layout.

    Raises:
        InputError: a model of another kind, that torch may know.
        CheckpointError: files are missing or damaged.
        ConfigError: a configuration is wrong.
    """
    index = read_model_index(path)
    _check_classes(index)

    def config(component: str) -> Mapping[str, Any]:
        return read_config(path / component, "config.json", path)

    unet_config = UNet2DConditionConfig.from_dict(config("unet"))
    vae_config = AutoencoderKLConfig.from_dict(config("vae"))
    _check_networks(unet_config, vae_config)
    return ModelFolder(
        path=path,
        unet_config=unet_config,
        vae_config=vae_config,
        text_config=CLIPTextConfig.from_dict(config("text_encoder")),
        tokenizer=CLIPTokenizer.from_pretrained(path, subfolder="tokenizer"),
        scheduler=_scheduler(index),
    )


def _scheduler(index: ModelIndex) -> Any:
    from sfumato import schedulers

    _, name = index.components.get("scheduler", (None, None))
    if name not in schedulers.CLASS_NAMES:
        raise _torch_alone(f"the scheduler {str(name)[:80]}")
    return getattr(schedulers, name).from_pretrained(index.root, subfolder="scheduler")


def _check_classes(index: ModelIndex) -> None:
    if index.class_name != "StableDiffusionPipeline":
        raise _torch_alone(f"models of the kind {str(index.class_name)[:80]}")
    for component, names in _CLASSES.items():
        _, name = index.components.get(component, (None, None))
        if name not in names:
            raise _torch_alone(f"the {component} {str(name)[:80]}")
    for component in _ABSENT:
        if index.components.get(component, (None, None))[1] is not None:
            raise _torch_alone(f"models with a {component}")


def _check_networks(unet: UNet2DConditionConfig, vae: AutoencoderKLConfig) -> None:
    """What a pipeline would tell the networks beside latents, time and text is not told here."""
    supported_stages(unet)
    for name in ("class_embed_type", "num_class_embeds", "time_cond_proj_dim", "encoder_hid_dim"):
        if unet[name] is not None:
            raise _torch_alone(f"UNets with `{name}`")
    if unet.addition_embed_type not in (None, "text"):
        raise _torch_alone(f"UNets with addition_embed_type={unet.addition_embed_type!r}")
    if unet.in_channels != vae.latent_channels:
        raise _torch_alone("UNets that take a picture beside the latents")


def _check_widths(config: UNet2DConditionConfig, arrays: Mapping[str, StoredTensor]) -> None:
    """The widths of the residual blocks are those of the configuration.

    Nothing else tells that a file has other widths: functions take them from the weights.
    """
    down, middle, up = supported_stages(config)
    named = [("mid_block", middle)] if middle is not None else []
    named += [(f"down_blocks.{i}", stage) for i, stage in enumerate(down)]
    named += [(f"up_blocks.{i}", stage) for i, stage in enumerate(up)]
    for name, stage in named:
        for j, channels in enumerate(stage.in_channels):
            path = f"{name}.resnets.{j}.conv1.weight"
            wanted = (stage.out_channels, channels, 3, 3)
            found = arrays.get(path)
            if found is not None and found.shape != wanted:
                raise WeightsMismatchError(
                    f"'{path}' has the shape {found.shape}, but the configuration asks for"
                    f" {wanted}."
                )


def _torch_alone(what: str) -> InputError:
    return InputError(f"Without torch, {what} cannot be drawn with.", hint="Add --backend torch.")
