"""The smallest models that have every part of Stable Diffusion, for tests of files."""

from __future__ import annotations

from typing import Any

from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.unet import UNet2DConditionModel
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from sfumato.schedulers import PNDMScheduler
from sfumato.text.clip import CLIPTextModel
from sfumato.text.tokenizer import CLIPTokenizer
from sfumato.text.vocabulary import Vocabulary, byte_characters

UNET: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "layers_per_block": 1,
    "sample_size": 8,
}
VAE: dict[str, Any] = {"block_out_channels": [4], "norm_num_groups": 2, "sample_size": 8}
TEXT: dict[str, Any] = {
    "vocab_size": 514,
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def byte_tokenizer() -> CLIPTokenizer:
    """A tokenizer of 514 tokens: every byte, inside and at the end of a word, and two specials."""
    inside = byte_characters()
    tokens = [*inside, *(c + "</w>" for c in inside), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = Vocabulary({token: index for index, token in enumerate(tokens)}, [])
    return CLIPTokenizer(vocabulary=vocabulary)


def tiny_pipeline() -> StableDiffusionPipeline:
    """A pipeline with random weights."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL(VAE),
        text_encoder=CLIPTextModel(TEXT),
        tokenizer=byte_tokenizer(),
        unet=UNet2DConditionModel(UNET),
        scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
