"""Stable Diffusion for the computer you have.

    from sfumato import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained("path/to/a/folder")
    pipe("a red apple").images[0].save("apple.png")

Public names are loaded when they are first used, so that ``import sfumato`` takes no time and
loads no torch. `__all__` lists them.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.conditioners.classes import ClassEmbedder
    from sfumato.conditioners.layout import Box, Layout
    from sfumato.conditioners.layout_encoder import LayoutEncoder
    from sfumato.conditioners.semantic import SpatialRescaler
    from sfumato.diffusion.denoise import denoise
    from sfumato.diffusion.guidance_attention import (
        PerturbedAttentionGuidance,
        SelfAttentionGuidance,
    )
    from sfumato.diffusion.guidance_parts import (
        CFGPlusPlus,
        DynamicThresholding,
        IntervalGuidance,
        RescaleGuidance,
    )
    from sfumato.errors import (
        AdapterError,
        CheckpointError,
        ConfigError,
        DatasetError,
        HubError,
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
    from sfumato.jax.controlnet import FlaxControlNetModel
    from sfumato.jax.models import (
        FlaxAutoencoderKL,
        FlaxCLIPTextModel,
        FlaxCLIPVisionModel,
        FlaxUNet2DConditionModel,
    )
    from sfumato.jax.pipeline import FlaxStableDiffusionPipeline, FlaxStableDiffusionPipelineOutput
    from sfumato.jax.safety import FlaxStableDiffusionSafetyChecker
    from sfumato.jax.schedulers import (
        FlaxDDIMScheduler,
        FlaxDDPMScheduler,
        FlaxDPMSolverMultistepScheduler,
        FlaxEulerDiscreteScheduler,
        FlaxLMSDiscreteScheduler,
        FlaxPNDMScheduler,
    )
    from sfumato.jax.with_pictures import (
        FlaxStableDiffusionImg2ImgPipeline,
        FlaxStableDiffusionInpaintPipeline,
    )
    from sfumato.models.autoencoder import AutoencoderKL
    from sfumato.models.autoencoder_tiny import AutoencoderTiny
    from sfumato.models.controlnet import ControlNetModel, MultiControlNetModel
    from sfumato.models.t2i_adapter import MultiAdapter, T2IAdapter
    from sfumato.models.unet import UNet2DConditionModel
    from sfumato.models.unet_2d import UNet2DModel
    from sfumato.models.vq_autoencoder import VQModel
    from sfumato.outputs import BaseOutput
    from sfumato.pipelines.auto import (
        AutoPipelineForImage2Image,
        AutoPipelineForInpainting,
        AutoPipelineForText2Image,
    )
    from sfumato.pipelines.base import DiffusionPipeline
    from sfumato.pipelines.callbacks import (
        IPAdapterScaleCutoffCallback,
        MultiPipelineCallbacks,
        PipelineCallback,
        SDCFGCutoffCallback,
    )
    from sfumato.pipelines.controlnet import StableDiffusionControlNetPipeline
    from sfumato.pipelines.controlnet_img2img import StableDiffusionControlNetImg2ImgPipeline
    from sfumato.pipelines.controlnet_inpaint import StableDiffusionControlNetInpaintPipeline
    from sfumato.pipelines.depth2img import StableDiffusionDepth2ImgPipeline
    from sfumato.pipelines.hires import draw_large
    from sfumato.pipelines.image_processor import VaeImageProcessor
    from sfumato.pipelines.img2img import StableDiffusionImg2ImgPipeline
    from sfumato.pipelines.inpaint import StableDiffusionInpaintPipeline
    from sfumato.pipelines.instruct_pix2pix import StableDiffusionInstructPix2PixPipeline
    from sfumato.pipelines.ip_adapter_masks import IPAdapterMaskProcessor
    from sfumato.pipelines.latent_diffusion import LatentDiffusionPipeline
    from sfumato.pipelines.latent_upscale import StableDiffusionLatentUpscalePipeline
    from sfumato.pipelines.ldm import LDMPipeline
    from sfumato.pipelines.ldm_inpaint import LDMInpaintPipeline
    from sfumato.pipelines.ldm_superresolution import LDMSuperResolutionPipeline
    from sfumato.pipelines.ldm_text_to_image import LDMTextToImagePipeline
    from sfumato.pipelines.output import ImagePipelineOutput, StableDiffusionPipelineOutput
    from sfumato.pipelines.panorama import StableDiffusionPanoramaPipeline
    from sfumato.pipelines.pixels import DDIMPipeline, DDPMPipeline
    from sfumato.pipelines.previews import PreviewCallback
    from sfumato.pipelines.savings import DeepCache, TextGate, TokenMerging
    from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
    from sfumato.pipelines.t2i_adapter import StableDiffusionAdapterPipeline
    from sfumato.pipelines.upscale import StableDiffusionUpscalePipeline
    from sfumato.safety.checker import StableDiffusionSafetyChecker
    from sfumato.safety.image_processor import CLIPFeatureExtractor, CLIPImageProcessor
    from sfumato.schedulers import (
        CMStochasticIterativeScheduler,
        DDIMInverseScheduler,
        DDIMParallelScheduler,
        DDIMScheduler,
        DDPMParallelScheduler,
        DDPMScheduler,
        DEISMultistepScheduler,
        DPMAdaptiveScheduler,
        DPMSolverMultistepInverseScheduler,
        DPMSolverMultistepScheduler,
        DPMSolverSDEScheduler,
        DPMSolverSinglestepScheduler,
        EDMDPMSolverMultistepScheduler,
        EDMEulerScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        IPNDMScheduler,
        KarrasDiffusionSchedulers,
        KDiffusionScheduler,
        KDPM2AncestralDiscreteScheduler,
        KDPM2DiscreteScheduler,
        LCMScheduler,
        LMSDiscreteScheduler,
        PNDMScheduler,
        SASolverScheduler,
        TCDScheduler,
        UniPCMultistepScheduler,
    )
    from sfumato.text.bert_tokenizer import BertTokenizer
    from sfumato.text.clip import CLIPTextModel, CLIPTextModelWithProjection
    from sfumato.text.clip_vision import CLIPVisionModel, CLIPVisionModelWithProjection
    from sfumato.text.ldm_bert import LDMBertModel
    from sfumato.text.tokenizer import CLIPTokenizer

__version__ = "0.1.0"

#: Where each public name is at home.
_MODULE_OF = {
    "DPMAdaptiveScheduler": "sfumato.schedulers",
    "FlaxPNDMScheduler": "sfumato.jax.schedulers",
    "FlaxLMSDiscreteScheduler": "sfumato.jax.schedulers",
    "FlaxEulerDiscreteScheduler": "sfumato.jax.schedulers",
    "FlaxDPMSolverMultistepScheduler": "sfumato.jax.schedulers",
    "FlaxDDPMScheduler": "sfumato.jax.schedulers",
    "FlaxDDIMScheduler": "sfumato.jax.schedulers",
    "FlaxStableDiffusionSafetyChecker": "sfumato.jax.safety",
    "FlaxUNet2DConditionModel": "sfumato.jax.models",
    "FlaxCLIPTextModel": "sfumato.jax.models",
    "FlaxCLIPVisionModel": "sfumato.jax.models",
    "FlaxControlNetModel": "sfumato.jax.controlnet",
    "FlaxAutoencoderKL": "sfumato.jax.models",
    "FlaxStableDiffusionInpaintPipeline": "sfumato.jax.with_pictures",
    "FlaxStableDiffusionImg2ImgPipeline": "sfumato.jax.with_pictures",
    "FlaxStableDiffusionPipelineOutput": "sfumato.jax.pipeline",
    "FlaxStableDiffusionPipeline": "sfumato.jax.pipeline",
    "DDIMPipeline": "sfumato.pipelines.pixels",
    "DDPMPipeline": "sfumato.pipelines.pixels",
    "LDMInpaintPipeline": "sfumato.pipelines.ldm_inpaint",
    "LDMPipeline": "sfumato.pipelines.ldm",
    "LDMSuperResolutionPipeline": "sfumato.pipelines.ldm_superresolution",
    "LatentDiffusionPipeline": "sfumato.pipelines.latent_diffusion",
    "UNet2DModel": "sfumato.models.unet_2d",
    "VQModel": "sfumato.models.vq_autoencoder",
    "TokenMerging": "sfumato.pipelines.savings",
    "TextGate": "sfumato.pipelines.savings",
    "DeepCache": "sfumato.pipelines.savings",
    "BertTokenizer": "sfumato.text.bert_tokenizer",
    "Box": "sfumato.conditioners.layout",
    "ClassEmbedder": "sfumato.conditioners.classes",
    "LDMBertModel": "sfumato.text.ldm_bert",
    "LDMTextToImagePipeline": "sfumato.pipelines.ldm_text_to_image",
    "Layout": "sfumato.conditioners.layout",
    "LayoutEncoder": "sfumato.conditioners.layout_encoder",
    "SpatialRescaler": "sfumato.conditioners.semantic",
    "MultiAdapter": "sfumato.models.t2i_adapter",
    "T2IAdapter": "sfumato.models.t2i_adapter",
    "StableDiffusionAdapterPipeline": "sfumato.pipelines.t2i_adapter",
    "AutoPipelineForInpainting": "sfumato.pipelines.auto",
    "AutoPipelineForImage2Image": "sfumato.pipelines.auto",
    "AutoPipelineForText2Image": "sfumato.pipelines.auto",
    "draw_large": "sfumato.pipelines.hires",
    "StableDiffusionPanoramaPipeline": "sfumato.pipelines.panorama",
    "CFGPlusPlus": "sfumato.diffusion.guidance_parts",
    "DynamicThresholding": "sfumato.diffusion.guidance_parts",
    "IntervalGuidance": "sfumato.diffusion.guidance_parts",
    "RescaleGuidance": "sfumato.diffusion.guidance_parts",
    "PerturbedAttentionGuidance": "sfumato.diffusion.guidance_attention",
    "SelfAttentionGuidance": "sfumato.diffusion.guidance_attention",
    "ImagePipelineOutput": "sfumato.pipelines.output",
    "MultiControlNetModel": "sfumato.models.controlnet",
    "ControlNetModel": "sfumato.models.controlnet",
    "StableDiffusionControlNetInpaintPipeline": "sfumato.pipelines.controlnet_inpaint",
    "StableDiffusionControlNetImg2ImgPipeline": "sfumato.pipelines.controlnet_img2img",
    "StableDiffusionControlNetPipeline": "sfumato.pipelines.controlnet",
    "StableDiffusionUpscalePipeline": "sfumato.pipelines.upscale",
    "PreviewCallback": "sfumato.pipelines.previews",
    "StableDiffusionLatentUpscalePipeline": "sfumato.pipelines.latent_upscale",
    "StableDiffusionDepth2ImgPipeline": "sfumato.pipelines.depth2img",
    "StableDiffusionInstructPix2PixPipeline": "sfumato.pipelines.instruct_pix2pix",
    "StableDiffusionInpaintPipeline": "sfumato.pipelines.inpaint",
    "StableDiffusionImg2ImgPipeline": "sfumato.pipelines.img2img",
    "AdapterError": "sfumato.errors",
    "AutoencoderKL": "sfumato.models.autoencoder",
    "AutoencoderTiny": "sfumato.models.autoencoder_tiny",
    "BaseOutput": "sfumato.outputs",
    "CLIPFeatureExtractor": "sfumato.safety.image_processor",
    "CLIPImageProcessor": "sfumato.safety.image_processor",
    "CLIPTextModel": "sfumato.text.clip",
    "CLIPTextModelWithProjection": "sfumato.text.clip",
    "CLIPTokenizer": "sfumato.text.tokenizer",
    "CLIPVisionModel": "sfumato.text.clip_vision",
    "CLIPVisionModelWithProjection": "sfumato.text.clip_vision",
    "CMStochasticIterativeScheduler": "sfumato.schedulers",
    "CheckpointError": "sfumato.errors",
    "ConfigError": "sfumato.errors",
    "DDIMInverseScheduler": "sfumato.schedulers",
    "DDIMParallelScheduler": "sfumato.schedulers",
    "DDIMScheduler": "sfumato.schedulers",
    "DDPMParallelScheduler": "sfumato.schedulers",
    "DDPMScheduler": "sfumato.schedulers",
    "DEISMultistepScheduler": "sfumato.schedulers",
    "DPMSolverMultistepInverseScheduler": "sfumato.schedulers",
    "DPMSolverMultistepScheduler": "sfumato.schedulers",
    "DPMSolverSDEScheduler": "sfumato.schedulers",
    "DPMSolverSinglestepScheduler": "sfumato.schedulers",
    "DatasetError": "sfumato.errors",
    "DiffusionPipeline": "sfumato.pipelines.base",
    "EDMDPMSolverMultistepScheduler": "sfumato.schedulers",
    "EDMEulerScheduler": "sfumato.schedulers",
    "EulerAncestralDiscreteScheduler": "sfumato.schedulers",
    "EulerDiscreteScheduler": "sfumato.schedulers",
    "HeunDiscreteScheduler": "sfumato.schedulers",
    "HubError": "sfumato.errors",
    "IPNDMScheduler": "sfumato.schedulers",
    "ImageError": "sfumato.errors",
    "InputError": "sfumato.errors",
    "KDPM2AncestralDiscreteScheduler": "sfumato.schedulers",
    "KDPM2DiscreteScheduler": "sfumato.schedulers",
    "KDiffusionScheduler": "sfumato.schedulers",
    "KarrasDiffusionSchedulers": "sfumato.schedulers",
    "LCMScheduler": "sfumato.schedulers",
    "LMSDiscreteScheduler": "sfumato.schedulers",
    "MissingDependencyError": "sfumato.errors",
    "ModelNotFoundError": "sfumato.errors",
    "MultiPipelineCallbacks": "sfumato.pipelines.callbacks",
    "NumericalError": "sfumato.errors",
    "PNDMScheduler": "sfumato.schedulers",
    "PipelineCallback": "sfumato.pipelines.callbacks",
    "SASolverScheduler": "sfumato.schedulers",
    "SDCFGCutoffCallback": "sfumato.pipelines.callbacks",
    "SfumatoError": "sfumato.errors",
    "StableDiffusionPipeline": "sfumato.pipelines.stable_diffusion",
    "StableDiffusionPipelineOutput": "sfumato.pipelines.output",
    "StableDiffusionSafetyChecker": "sfumato.safety.checker",
    "TCDScheduler": "sfumato.schedulers",
    "TokenizerError": "sfumato.errors",
    "UNet2DConditionModel": "sfumato.models.unet",
    "UniPCMultistepScheduler": "sfumato.schedulers",
    "UnknownKeywordError": "sfumato.errors",
    "IPAdapterMaskProcessor": "sfumato.pipelines.ip_adapter_masks",
    "IPAdapterScaleCutoffCallback": "sfumato.pipelines.callbacks",
    "VaeImageProcessor": "sfumato.pipelines.image_processor",
    "WeightsMismatchError": "sfumato.errors",
    "denoise": "sfumato.diffusion.denoise",
}

__all__ = [
    "AdapterError",
    "AutoPipelineForImage2Image",
    "AutoPipelineForInpainting",
    "AutoPipelineForText2Image",
    "AutoencoderKL",
    "AutoencoderTiny",
    "BaseOutput",
    "BertTokenizer",
    "Box",
    "CFGPlusPlus",
    "CLIPFeatureExtractor",
    "CLIPImageProcessor",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPTokenizer",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "CMStochasticIterativeScheduler",
    "CheckpointError",
    "ClassEmbedder",
    "ConfigError",
    "ControlNetModel",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMPipeline",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMPipeline",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMAdaptiveScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "DatasetError",
    "DeepCache",
    "DiffusionPipeline",
    "DynamicThresholding",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlaxAutoencoderKL",
    "FlaxCLIPTextModel",
    "FlaxCLIPVisionModel",
    "FlaxControlNetModel",
    "FlaxDDIMScheduler",
    "FlaxDDPMScheduler",
    "FlaxDPMSolverMultistepScheduler",
    "FlaxEulerDiscreteScheduler",
    "FlaxLMSDiscreteScheduler",
    "FlaxPNDMScheduler",
    "FlaxStableDiffusionImg2ImgPipeline",
    "FlaxStableDiffusionInpaintPipeline",
    "FlaxStableDiffusionPipeline",
    "FlaxStableDiffusionPipelineOutput",
    "FlaxStableDiffusionSafetyChecker",
    "FlaxUNet2DConditionModel",
    "HeunDiscreteScheduler",
    "HubError",
    "IPAdapterMaskProcessor",
    "IPAdapterScaleCutoffCallback",
    "IPNDMScheduler",
    "ImageError",
    "ImagePipelineOutput",
    "InputError",
    "IntervalGuidance",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDiffusionScheduler",
    "KarrasDiffusionSchedulers",
    "LCMScheduler",
    "LDMBertModel",
    "LDMInpaintPipeline",
    "LDMPipeline",
    "LDMSuperResolutionPipeline",
    "LDMTextToImagePipeline",
    "LMSDiscreteScheduler",
    "LatentDiffusionPipeline",
    "Layout",
    "LayoutEncoder",
    "MissingDependencyError",
    "ModelNotFoundError",
    "MultiAdapter",
    "MultiControlNetModel",
    "MultiPipelineCallbacks",
    "NumericalError",
    "PNDMScheduler",
    "PerturbedAttentionGuidance",
    "PipelineCallback",
    "PreviewCallback",
    "RescaleGuidance",
    "SASolverScheduler",
    "SDCFGCutoffCallback",
    "SelfAttentionGuidance",
    "SfumatoError",
    "SpatialRescaler",
    "StableDiffusionAdapterPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionLatentUpscalePipeline",
    "StableDiffusionPanoramaPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionPipelineOutput",
    "StableDiffusionSafetyChecker",
    "StableDiffusionUpscalePipeline",
    "T2IAdapter",
    "TCDScheduler",
    "TextGate",
    "TokenMerging",
    "TokenizerError",
    "UNet2DConditionModel",
    "UNet2DModel",
    "UniPCMultistepScheduler",
    "UnknownKeywordError",
    "VQModel",
    "VaeImageProcessor",
    "WeightsMismatchError",
    "__version__",
    "denoise",
    "draw_large",
]

if find_spec("jax") is None:  # `from sfumato import *` does not ask for it
    __all__ = [name for name in __all__ if not name.startswith("Flax")]  # pyright: ignore


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'sfumato' has no attribute '{name}'")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
