"""Tiny random models: one set of weights as an oracle's components and as ours."""

from __future__ import annotations

import inspect
import random
from functools import cache
from typing import Any

import torch
from torch import nn

import sfumato.schedulers
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.controlnet import ControlNetModel
from sfumato.models.unet import UNet2DConditionModel
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from sfumato.text.clip import CLIPTextModel
from sfumato.text.tokenizer import CLIPTokenizer

WIDTH = 32

#: What the scheduler of a Stable Diffusion 1.x checkpoint says.
SD_SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}

VAE: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 16,
}

TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 49408,
    "projection_dim": WIDTH,
}


def tiny_unet(seed: int = 0, **fields: Any) -> UNet2DConditionModel:
    """A UNet with random weights, large enough to make every step change the picture."""
    return _seeded(seed, lambda: UNet2DConditionModel(**{**UNET, **fields}))


def tiny_controlnet(seed: int = 0, **fields: Any) -> ControlNetModel:
    """A ControlNet for `tiny_unet` whose features are not zero."""
    known = set(ControlNetModel.config_class.__dataclass_fields__)
    shared = {name: value for name, value in UNET.items() if name in known}
    own = {"conditioning_embedding_out_channels": (8, 16), **fields}
    net = _seeded(seed, lambda: ControlNetModel(**{**shared, **own}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net


def tiny_vae(seed: int = 0, **fields: Any) -> AutoencoderKL:
    """An autoencoder with random weights; one latent is 2 x 2 pixels."""
    return _seeded(seed, lambda: AutoencoderKL(**{**VAE, **fields}))


def tiny_text_encoder(seed: int = 0, **fields: Any) -> CLIPTextModel:
    """A text encoder with random weights and the real vocabulary."""
    return _seeded(seed, lambda: CLIPTextModel(**{**TEXT, **fields}))


def _seeded(seed: int, build: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build().eval()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 1:
                    parameter += 0.1 * torch.randn_like(parameter)
    return network


@cache
def tokenizer() -> CLIPTokenizer:
    """The tokenizer of Stable Diffusion 1.x; not to be changed by a test."""
    return CLIPTokenizer()


def tiny_scheduler(name: str = "PNDMScheduler", **fields: Any) -> Any:
    """A scheduler of Stable Diffusion 1.x, of the class named."""
    cls = getattr(sfumato.schedulers, name)
    mended = {"skip_prk_steps": True, "steps_offset": 1, "clip_sample": False}
    known = inspect.signature(cls).parameters
    wishes = {key: value for key, value in {**SD_SCHEDULER, **mended}.items() if key in known}
    return cls(**{**wishes, **fields})


def tiny_parts(seed: int = 0, unet: dict[str, Any] | None = None) -> dict[str, Any]:
    """All components of a text-to-image pipeline."""
    return {
        "vae": tiny_vae(seed + 1),
        "text_encoder": tiny_text_encoder(seed + 2),
        "tokenizer": tokenizer(),
        "unet": tiny_unet(seed + 3, **(unet or {})),
        "scheduler": tiny_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def tiny_pipeline(seed: int = 0, **changes: Any) -> StableDiffusionPipeline:
    """A text-to-image pipeline that draws 16 x 16 pixels of nonsense."""
    pipeline = StableDiffusionPipeline(**{**tiny_parts(seed), **changes})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(*seeds: int) -> Any:
    """A generator, or a list of them."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(seeds) > 1 else generators[0]


def word(rng: random.Random) -> str:
    """A random short prompt."""
    words = ["red", "Apple", "boat", "river", "cat", "on", "of", "4k,", "(old)", "house"]
    return " ".join(rng.choice(words) for _ in range(rng.randint(0, 12)))


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}
