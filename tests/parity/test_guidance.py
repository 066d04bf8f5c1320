"""Perturbed-attention and self-attention guidance, CFG++ and embeddings of any length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.pipelines.pag.pipeline_pag_sd import StableDiffusionPAGPipeline
from diffusers.pipelines.stable_diffusion_sag.pipeline_stable_diffusion_sag import (
    StableDiffusionSAGPipeline,
)
from torch import Tensor

from sfumato.diffusion.guidance_attention import PerturbedAttentionGuidance, SelfAttentionGuidance
from sfumato.diffusion.guidance_parts import CFGPlusPlus
from tests.parity.oracle_pipeline import distance, oracle_of
from tests.pipelines.tiny import WIDTH, seeded, tiny_pipeline, tiny_scheduler, tiny_unet

STEPS = 4


def pair(oracle_class: Any, scheduler: str = "DDIMScheduler", **unet: Any) -> tuple[Any, Any]:
    """Our pipeline, and the oracle's for one kind of guidance, with the same weights."""
    ours = tiny_pipeline(
        scheduler=tiny_scheduler(scheduler), unet=tiny_unet(4, sample_size=16, **unet)
    )
    components = dict(oracle_of(ours).components)
    components["requires_safety_checker"] = False
    oracle = oracle_class(**components)
    oracle.set_progress_bar_config(disable=True)
    return ours, oracle


def latents(pipe: Any, **options: Any) -> Tensor:
    given = {"num_inference_steps": STEPS, "generator": seeded(1), "output_type": "latent"}
    return pipe("a red cat", **{**given, **options}).images


@pytest.mark.parametrize(
    ("scheduler", "guidance_scale"),
    [("DDIMScheduler", 7.5), ("EulerDiscreteScheduler", 3.0), ("PNDMScheduler", 1.0)],
)
def test_perturbed_attention_is_that_of_diffusers(scheduler: str, guidance_scale: float) -> None:
    ours, oracle = pair(StableDiffusionPAGPipeline, scheduler)
    for scale, adaptive, layers, rescale in (
        (3.0, 0.0, "mid", 0.0),
        (2.0, 0.004, ["down.*attentions_0|down_blocks.1.attentions.0", "up"], 0.5),
    ):
        oracle.set_pag_applied_layers(layers)
        common = {"guidance_scale": guidance_scale, "guidance_rescale": rescale}
        theirs = latents(oracle, pag_scale=scale, pag_adaptive_scale=adaptive, **common)
        part = PerturbedAttentionGuidance(scale, adaptive=adaptive, layers=layers)
        found = latents(ours, guidance=part, **common)
        assert distance(found, theirs) < 1e-4
        assert distance(latents(ours, **common), theirs) > 1e-3


@pytest.mark.parametrize(
    ("prediction", "guidance_scale"), [("epsilon", 7.5), ("v_prediction", 3.0), ("epsilon", 1.0)]
)
def test_self_attention_is_that_of_diffusers(prediction: str, guidance_scale: float) -> None:
    ours, oracle = pair(StableDiffusionSAGPipeline)
    for pipe in (ours, oracle):
        config = {**dict(pipe.scheduler.config), "prediction_type": prediction}
        pipe.scheduler = type(pipe.scheduler).from_config(config)
    theirs = latents(oracle, sag_scale=0.75, guidance_scale=guidance_scale)
    part = SelfAttentionGuidance()
    found = latents(ours, guidance=[part], guidance_scale=guidance_scale)
    assert distance(found, theirs) < 1e-4
    assert distance(latents(ours, guidance_scale=guidance_scale), theirs) > 1e-4


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
@torch.no_grad()
def test_cfg_plus_plus_is_the_formula_of_its_paper(scheduler: str) -> None:
    """Algorithm 2 of arXiv:2406.08070: the guided picture, with the negative prompt's noise."""
    options = {"set_alpha_to_one": False} if scheduler == "DDIMScheduler" else {}
    ours: Any = tiny_pipeline(scheduler=tiny_scheduler(scheduler, **options))
    strength = 0.6
    found = latents(ours, guidance=CFGPlusPlus(strength), negative_prompt="a dog")

    ours.scheduler.set_timesteps(STEPS)
    times = ours.scheduler.timesteps
    if scheduler == "DDIMScheduler":
        products = ours.scheduler.alphas_cumprod.double()[[*times.tolist(), 0]]
        sigmas = ((1 - products) / products).sqrt().tolist()
        first = (1 + sigmas[0] ** 2) ** 0.5
    else:
        sigmas = ours.scheduler.sigmas.tolist()
        first = float(ours.scheduler.init_noise_sigma)
    embeds = ours.encode_prompt("a red cat", "cpu", 1, True, "a dog")
    y = torch.randn(1, 4, 8, 8, generator=seeded(1)).double() * first
    for time, now, then in zip(times, sigmas, sigmas[1:], strict=False):
        x = (y / (1 + now**2) ** 0.5).float()
        stronger, weaker = (
            ours.unet(x, time, encoder_hidden_states=prompt).sample.double() for prompt in embeds
        )
        y = y - now * (weaker + strength * (stronger - weaker)) + then * weaker
    assert distance(found, (y / (1 + sigmas[-1] ** 2) ** 0.5).float()) < 1e-4


def test_embeddings_longer_than_the_encoder_allows_are_taken_as_in_diffusers() -> None:
    ours: Any = tiny_pipeline(scheduler=tiny_scheduler("DDIMScheduler"))
    oracle = oracle_of(ours)
    numbers = torch.Generator().manual_seed(0)
    for length in (154, 231, 100, 3):
        embeds, negative = torch.randn(2, 1, length, WIDTH, generator=numbers)
        given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
        both = [
            pipe(num_inference_steps=2, generator=seeded(1), output_type="latent", **given).images
            for pipe in (ours, oracle)
        ]
        assert distance(*both) < 1e-4
