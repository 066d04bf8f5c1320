"""Safety checkers, pictures as prompts and LoRA layers of other libraries, as in diffusers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import peft
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image

from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.parity.oracle_pipeline import oracle_of
from tests.pipelines.tiny import WIDTH, seeded, tiny_pipeline

VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
    "projection_dim": 12,
}


@cache
def _oracle() -> Any:
    return oracle_of(tiny_pipeline())


def _pair(**changes: Any) -> tuple[StableDiffusionPipeline, Any]:
    """Ours and the oracle around the same objects, so that results agree bit by bit."""
    components = {**_oracle().components, **changes, "requires_safety_checker": False}
    pair = StableDiffusionPipeline(**components), diffusers.StableDiffusionPipeline(**components)
    for pipeline in pair:
        pipeline.set_progress_bar_config(disable=True)
    return pair


def _feature_extractor() -> Any:
    return transformers.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=24)


def _checker(threshold: float) -> Any:
    """A random checker that objects to all (-1) or nothing (1)."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        config = transformers.CLIPConfig(
            text_config=text, vision_config=VISION, projection_dim=VISION["projection_dim"]
        )
        checker = StableDiffusionSafetyChecker(config).eval()
    checker.concept_embeds_weights.data.fill_(threshold)
    checker.special_care_embeds_weights.data.fill_(threshold)
    checker.concept_embeds.data.normal_(generator=seeded(4))
    checker.special_care_embeds.data.normal_(generator=seeded(5))
    return checker


@pytest.mark.parametrize("threshold", [-1.0, 0.1, 1.0])
@pytest.mark.parametrize("output_type", ["pil", "pt"])
def test_a_safety_checker_objects_and_blackens_as_in_diffusers(
    threshold: float, output_type: str
) -> None:
    pair = _pair(safety_checker=_checker(threshold), feature_extractor=_feature_extractor())
    ours, oracle = (
        pipeline(
            ["a boat", "a cat", "a sky"],
            num_inference_steps=2,
            generator=seeded(1),
            output_type=output_type,
        )
        for pipeline in pair
    )
    assert ours.nsfw_content_detected == oracle.nsfw_content_detected
    assert abs(threshold) < 1 or ours.nsfw_content_detected == [threshold < 0] * 3
    for picture, expected in zip(ours.images, oracle.images, strict=True):
        assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_a_safety_checker_of_diffusers_is_saved_where_it_finds_it(tmp_path: Path) -> None:
    ours, _ = _pair(safety_checker=_checker(-1.0), feature_extractor=_feature_extractor())
    ours.save_pretrained(tmp_path)
    oracle = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(oracle.safety_checker, StableDiffusionSafetyChecker)
    assert oracle.feature_extractor.crop_size == {"height": 24, "width": 24}


def _adapter(unet: Any, image_width: int, tokens: int = 4) -> dict[str, Any]:
    """Random weights of an IP-Adapter for a UNet."""
    generator = seeded(6)

    def rand(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    layers: dict[str, torch.Tensor] = {}
    cross = [n for n in unet.attn_processors if not n.endswith("attn1.processor")]
    for index, name in enumerate(cross):
        module = unet.get_submodule(name.removesuffix(".processor"))
        for which in ("k", "v"):
            layers[f"{2 * index + 1}.to_{which}_ip.weight"] = rand(module.inner_dim, WIDTH)
    projection = {
        "proj.weight": rand(tokens * WIDTH, image_width),
        "proj.bias": rand(tokens * WIDTH),
        "norm.weight": 1 + rand(WIDTH),
        "norm.bias": rand(WIDTH),
    }
    return {"image_proj": projection, "ip_adapter": layers}


def _with_adapter() -> tuple[StableDiffusionPipeline, Any]:
    unet = diffusers.UNet2DConditionModel.from_config(_oracle().unet.config)
    unet.load_state_dict(_oracle().unet.state_dict())
    width = VISION["projection_dim"]
    unet._load_ip_adapter_weights([_adapter(unet, width)], low_cpu_mem_usage=False)
    with torch.random.fork_rng():
        torch.manual_seed(8)
        encoder = transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**VISION)
        )
    return _pair(
        unet=unet.eval(), image_encoder=encoder.eval(), feature_extractor=_feature_extractor()
    )


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_pictures_as_prompts_work_with_a_unet_of_diffusers(guidance_scale: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    halves = 2 if guidance_scale > 1 else 1
    embeds = torch.randn(halves, 1, VISION["projection_dim"], generator=seeded(9))
    pair = _with_adapter()
    results = []
    for arguments in (
        {"ip_adapter_image": Image.fromarray(pixels)},
        {"ip_adapter_image": [Image.fromarray(pixels)], "num_images_per_prompt": 2},
        {"ip_adapter_image_embeds": [embeds]},
    ):
        ours, oracle = (
            pipeline(
                "a boat",
                num_inference_steps=2,
                guidance_scale=guidance_scale,
                generator=seeded(1),
                output_type="latent",
                **arguments,
            ).images
            for pipeline in pair
        )
        assert torch.equal(ours, oracle)
        results.append(ours[:1])
    assert not torch.equal(results[0], results[2])
    with pytest.raises(ValueError, match="Got 2 images and 1 IP Adapters"):
        pair[0]("a boat", ip_adapter_image=[Image.fromarray(pixels)] * 2)


def test_lora_layers_of_peft_are_scaled_for_one_call() -> None:
    encoder = transformers.CLIPTextModel(_oracle().text_encoder.config).eval()
    encoder.load_state_dict(_oracle().text_encoder.state_dict())
    encoder.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=seeded(len(name)))
    pair = _pair(text_encoder=encoder)
    results: dict[float, torch.Tensor] = {}
    for scale in (1.0, 0.3, 1.0):
        ours, oracle = (
            pipeline(
                "a boat",
                num_inference_steps=2,
                generator=seeded(1),
                output_type="latent",
                cross_attention_kwargs={"scale": scale},
            ).images
            for pipeline in pair
        )
        assert torch.allclose(ours, oracle, atol=1e-5)
        if scale in results:
            assert torch.equal(results[scale], ours)
        results[scale] = ours
    assert not torch.allclose(results[1.0], results[0.3], atol=1e-3)
