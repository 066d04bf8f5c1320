"""Stable Diffusion for the computer you have.

    from sfumato import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained("path/to/a/folder")
    pipe("a red apple").images[0].save("apple.png")

Public names are loaded when they are first used, so that ``import sfumato`` takes no time and
loads no torch. `__all__` lists them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.diffusion.denoise import denoise
    from sfumato.errors import (
        CheckpointError,
        ConfigError,
        DatasetError,
        ImageError,
        InputError,
        MissingDependencyError,
        ModelNotFoundError,
        NumericalError,
        SfumatoError,
        TokenizerError,
        UnknownKeywordError,
        WeightsMismatchError,
    )
    from sfumato.models.autoencoder import AutoencoderKL
    from sfumato.models.unet import UNet2DConditionModel
    from sfumato.outputs import BaseOutput
    from sfumato.pipelines.base import DiffusionPipeline
    from sfumato.pipelines.callbacks import (
        MultiPipelineCallbacks,
        PipelineCallback,
        SDCFGCutoffCallback,
    )
    from sfumato.pipelines.image_processor import VaeImageProcessor
    from sfumato.pipelines.output import StableDiffusionPipelineOutput
    from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
    from sfumato.schedulers import (
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        KarrasDiffusionSchedulers,
        LCMScheduler,
        PNDMScheduler,
        TCDScheduler,
        UniPCMultistepScheduler,
    )
    from sfumato.text.clip import CLIPTextModel, CLIPTextModelWithProjection
    from sfumato.text.tokenizer import CLIPTokenizer

__version__ = "0.1.0"

_NAMES_BY_MODULE = {
    "sfumato.diffusion.denoise": "denoise",
    "sfumato.errors": (
        "CheckpointError ConfigError DatasetError ImageError InputError MissingDependencyError"
        " ModelNotFoundError NumericalError SfumatoError TokenizerError UnknownKeywordError"
        " WeightsMismatchError"
    ),
    "sfumato.models.autoencoder": "AutoencoderKL",
    "sfumato.models.unet": "UNet2DConditionModel",
    "sfumato.outputs": "BaseOutput",
    "sfumato.pipelines.base": "DiffusionPipeline",
    "sfumato.pipelines.callbacks": "MultiPipelineCallbacks PipelineCallback SDCFGCutoffCallback",
    "sfumato.pipelines.image_processor": "VaeImageProcessor",
    "sfumato.pipelines.output": "StableDiffusionPipelineOutput",
    "sfumato.pipelines.stable_diffusion": "StableDiffusionPipeline",
    "sfumato.schedulers": (
        "DDIMScheduler DDPMScheduler DPMSolverMultistepScheduler EulerAncestralDiscreteScheduler"
        " EulerDiscreteScheduler KarrasDiffusionSchedulers LCMScheduler PNDMScheduler TCDScheduler"
        " UniPCMultistepScheduler"
    ),
    "sfumato.text.clip": "CLIPTextModel CLIPTextModelWithProjection",
    "sfumato.text.tokenizer": "CLIPTokenizer",
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()}

__all__ = [
    "AutoencoderKL",
    "BaseOutput",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPTokenizer",
    "CheckpointError",
    "ConfigError",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DatasetError",
    "DiffusionPipeline",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "ImageError",
    "InputError",
    "KarrasDiffusionSchedulers",
    "LCMScheduler",
    "MissingDependencyError",
    "ModelNotFoundError",
    "MultiPipelineCallbacks",
    "NumericalError",
    "PNDMScheduler",
    "PipelineCallback",
    "SDCFGCutoffCallback",
    "SfumatoError",
    "StableDiffusionPipeline",
    "StableDiffusionPipelineOutput",
    "TCDScheduler",
    "TokenizerError",
    "UNet2DConditionModel",
    "UniPCMultistepScheduler",
    "UnknownKeywordError",
    "VaeImageProcessor",
    "WeightsMismatchError",
    "__version__",
    "denoise",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'sfumato' has no attribute '{name}'")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
