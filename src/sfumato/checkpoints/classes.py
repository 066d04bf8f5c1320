"""The closed table of classes that a model's folder may name.

A folder only chooses among these names. Nothing is imported because a file says so: a name that
is not in the table is an error, whatever else it might mean to Python.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sfumato.errors import ConfigError, did_you_mean

_SCHEDULERS = """
    CMStochasticIterativeScheduler DDIMInverseScheduler DDIMParallelScheduler DDIMScheduler
    DDPMParallelScheduler DDPMScheduler DEISMultistepScheduler DPMSolverMultistepInverseScheduler
    DPMSolverMultistepScheduler DPMSolverSDEScheduler DPMSolverSinglestepScheduler
    EDMDPMSolverMultistepScheduler EDMEulerScheduler EulerAncestralDiscreteScheduler
    EulerDiscreteScheduler HeunDiscreteScheduler IPNDMScheduler KDPM2AncestralDiscreteScheduler
    KDPM2DiscreteScheduler LCMScheduler LMSDiscreteScheduler PNDMScheduler SASolverScheduler
    TCDScheduler UniPCMultistepScheduler
""".split()  # noqa: SIM905

#: Class name to (library that folders say it is from, module that has it here).
CLASSES: dict[str, tuple[str, str]] = {
    "UNet2DConditionModel": ("diffusers", "sfumato.models.unet"),
    "T2IAdapter": ("diffusers", "sfumato.models.t2i_adapter"),
    "ControlNetModel": ("diffusers", "sfumato.models.controlnet"),
    "MultiAdapter": ("diffusers", "sfumato.models.t2i_adapter"),
    "MultiControlNetModel": ("diffusers", "sfumato.models.controlnet"),
    "AutoencoderKL": ("diffusers", "sfumato.models.autoencoder"),
    "UNet2DModel": ("diffusers", "sfumato.models.unet_2d"),
    "VQModel": ("diffusers", "sfumato.models.vq_autoencoder"),
    "AutoencoderTiny": ("diffusers", "sfumato.models.autoencoder_tiny"),
    "CLIPTextModel": ("transformers", "sfumato.text.clip"),
    "CLIPTextModelWithProjection": ("transformers", "sfumato.text.clip"),
    "CLIPVisionModel": ("transformers", "sfumato.text.clip_vision"),
    "CLIPVisionModelWithProjection": ("transformers", "sfumato.text.clip_vision"),
    "CLIPImageProcessor": ("transformers", "sfumato.safety.image_processor"),
    "CLIPFeatureExtractor": ("transformers", "sfumato.safety.image_processor"),
    "StableDiffusionSafetyChecker": ("stable_diffusion", "sfumato.safety.checker"),
    "CLIPTokenizer": ("transformers", "sfumato.text.tokenizer"),
    "BertTokenizer": ("transformers", "sfumato.text.bert_tokenizer"),
    "LDMBertModel": ("latent_diffusion", "sfumato.text.ldm_bert"),
    "ClassEmbedder": ("sfumato", "sfumato.conditioners.classes"),
    "SpatialRescaler": ("sfumato", "sfumato.conditioners.semantic"),
    "LayoutEncoder": ("sfumato", "sfumato.conditioners.layout_encoder"),
    **dict.fromkeys(_SCHEDULERS, ("diffusers", "sfumato.schedulers")),
    "DPMAdaptiveScheduler": ("sfumato", "sfumato.schedulers"),
    "KDiffusionScheduler": ("sfumato", "sfumato.schedulers"),
}

#: Other names of the same classes.
_ALIASES = {"CLIPTokenizerFast": "CLIPTokenizer", "BertTokenizerFast": "BertTokenizer"}


def find_class(name: str, where: str) -> type[Any]:
    """The class of that name; ``where`` is for the message.

    Raises:
        ConfigError: when the table has no such name, or this version not the class.
    """
    plain = name.removeprefix("Flax")
    plain = _ALIASES.get(plain, plain)
    if plain not in CLASSES:
        raise ConfigError(
            f"{where} names the unknown class {name[:80]!r}.{did_you_mean(name[:80], CLASSES)}",
            hint="Pass the component as a keyword argument.",
        )
    found = getattr(import_module(CLASSES[plain][1]), plain, None)
    if found is None:
        raise ConfigError(
            f"{where} names {plain}, which this version does not have.",
            hint="Pass the component as a keyword argument.",
        )
    return found


def class_entry(component: object) -> tuple[str | None, str | None]:
    """What a folder's index says about a component: (library, class), twice None for none."""
    if component is None:
        return None, None
    cls = type(component)
    library = cls.__module__.partition(".")[0]
    if library == "sfumato":
        known = next((base.__name__ for base in cls.__mro__ if base.__name__ in CLASSES), None)
        return (CLASSES[known][0], known) if known else (library, cls.__name__)
    if cls.__module__.startswith("diffusers.pipelines."):  # listed by the pipeline's own name
        library = cls.__module__.split(".")[2]
    return library, cls.__name__
