"""CLIP's vision encoder, its image processor and the safety checker against their oracles."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import (
    StableDiffusionSafetyChecker as Oracle,
)
from PIL import Image

from sfumato.errors import ConfigError, ImageError, InputError, UnknownKeywordError
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from sfumato.safety.checker import StableDiffusionSafetyChecker
from sfumato.safety.image_processor import CLIPFeatureExtractor, CLIPImageProcessor
from sfumato.safety.policy import POLICIES
from sfumato.text.clip_vision import CLIPVisionModel, CLIPVisionModelWithProjection
from tests.parity.networks import relative_error, shapes, share_weights
from tests.parity.oracle_pipeline import oracle_of
from tests.pipelines.tiny import seeded, tiny_pipeline


def vision_config(rng: random.Random) -> dict[str, Any]:
    heads = rng.choice([1, 2, 4])
    return {
        "hidden_size": heads * rng.choice([8, 12]),
        "intermediate_size": rng.choice([16, 40]),
        "projection_dim": rng.choice([8, 20]),
        "num_hidden_layers": rng.randint(1, 3),
        "num_attention_heads": heads,
        "num_channels": rng.choice([1, 3]),
        "image_size": rng.choice([16, 18, 30]),
        "patch_size": rng.choice([4, 5, 8]),
        "hidden_act": rng.choice(["quick_gelu", "gelu"]),
        "layer_norm_eps": rng.choice([1e-5, 1e-3]),
    }


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("projected", [False, True])
@torch.no_grad()
def test_the_vision_encoder_computes_what_transformers_does(seed: int, projected: bool) -> None:
    rng = random.Random(seed)
    fields = vision_config(rng)
    name = "CLIPVisionModelWithProjection" if projected else "CLIPVisionModel"
    config = transformers.CLIPVisionConfig(**fields, attn_implementation="eager")
    torch.manual_seed(seed)
    oracle = getattr(transformers, name)(config)
    kind: Any = CLIPVisionModelWithProjection if projected else CLIPVisionModel
    ours = kind(config.to_dict())
    assert shapes(ours) == shapes(oracle)
    share_weights(oracle, ours, seed)
    pixels = torch.randn(2, fields["num_channels"], *[fields["image_size"]] * 2)
    options: dict[str, Any] = {"output_hidden_states": True, "output_attentions": True}
    if seed % 3 == 0:
        pixels = torch.randn(2, fields["num_channels"], 24, 40)
        options["interpolate_pos_encoding"] = True
    expected, actual = oracle(pixels, **options), ours(pixels, **options)
    assert list(actual.keys()) == list(expected.keys())
    for a, b in zip(actual.to_tuple(), expected.to_tuple(), strict=True):
        pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
        assert all(relative_error(x, y) < 1e-4 for x, y in pairs)
    plain = ours(pixels, **options, return_dict=False)
    assert torch.equal(plain[0], actual[0])


def test_vision_folders_go_both_ways(tmp_path: Path) -> None:
    ours = CLIPVisionModelWithProjection(vision_config(random.Random(0)))
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "theirs")
    assert back.config == ours.config
    assert all(torch.equal(t, ours.state_dict()[n]) for n, t in back.state_dict().items())


def test_pictures_of_another_size_are_refused() -> None:
    model = CLIPVisionModel(image_size=16, patch_size=8, hidden_size=12, num_hidden_layers=1)
    with pytest.raises(InputError, match="interpolate_pos_encoding"):
        model(torch.zeros(1, 3, 24, 24))
    with pytest.raises(ConfigError, match="patch_size"):
        CLIPVisionModel(image_size=16, patch_size=17)


# The image processor


def picture(rng: random.Random, low: int = 5, high: int = 400) -> Image.Image:
    """A smooth picture with some noise, so that the filter matters."""
    size = (rng.randint(low, high), rng.randint(low, high), 3)
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, size, dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("seed", range(12))
def test_pictures_are_prepared_as_by_transformers(seed: int) -> None:
    rng = random.Random(seed)
    settings: dict[str, Any] = rng.choice(
        [
            {},
            {},
            {"size": 32, "crop_size": 40, "resample": 2},
            {"size": {"height": 31, "width": 50}, "crop_size": {"height": 40, "width": 29}},
            {"do_resize": False, "crop_size": 64, "image_mean": [0, 0.5, 1], "image_std": [1] * 3},
            {"do_center_crop": False, "size": {"height": 20, "width": 30}, "do_rescale": False},
            {"do_normalize": False, "rescale_factor": 0.5},
        ]
    )
    oracle, ours = transformers.CLIPImageProcessor(**settings), CLIPImageProcessor(settings)
    images: Any = [picture(rng) for _ in range(2)]
    if rng.random() < 0.3:
        images = [np.asarray(image).transpose(2, 0, 1) for image in images]
    expected = oracle(images, return_tensors="pt").pixel_values
    actual = ours(images, return_tensors="pt").pixel_values
    assert actual.dtype == expected.dtype == torch.float32
    assert torch.allclose(actual, expected, atol=1e-5)
    single = ours(images[0], return_tensors="np").pixel_values
    assert np.array_equal(single[0], actual[0].numpy())
    assert np.array_equal(ours(images).pixel_values[1], actual[1].numpy())


def test_floating_point_pictures_are_as_those_in_bytes() -> None:
    image = picture(random.Random(1), 60, 90)
    scaled = torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1)
    process = CLIPImageProcessor(size=16, crop_size=16)
    expected = process(image, return_tensors="pt").pixel_values
    for same in (scaled, scaled[None], [scaled.numpy()], scaled.permute(1, 2, 0)):
        actual = process(same, return_tensors="pt").pixel_values
        assert (actual - expected).abs().max() < 0.04  # one step of 255


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_kinds_of_pictures_become_rgb(mode: str) -> None:
    image = picture(random.Random(2)).convert(mode)
    expected = transformers.CLIPImageProcessor()(image, return_tensors="pt").pixel_values
    assert torch.allclose(
        CLIPImageProcessor()(image, return_tensors="pt").pixel_values, expected, atol=1e-5
    )


def test_settings_go_to_and_from_files(tmp_path: Path) -> None:
    ours = CLIPImageProcessor(size=30, crop_size={"height": 20, "width": 10})
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert CLIPImageProcessor.from_pretrained(tmp_path / "theirs").config == ours.config
    assert theirs.crop_size["width"] == ours.crop_size["width"] == 10
    early = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(early))
    assert CLIPFeatureExtractor.from_pretrained(tmp_path).config == CLIPImageProcessor().config
    options: dict[str, Any] = {"local_files_only": True, "do_resize": False}
    assert CLIPImageProcessor.from_pretrained(tmp_path, **options).do_resize is False
    with pytest.raises(UnknownKeywordError, match="do_resize"):
        CLIPImageProcessor.from_pretrained(tmp_path, do_resiz=False)


def test_what_is_no_picture_is_refused() -> None:
    process = CLIPImageProcessor()
    for wrong in ("a.png", np.zeros((3, 4, 5, 3, 1)), np.zeros((5, 5, 2)), np.full((5, 5, 3), -1)):
        with pytest.raises(ImageError):
            process(wrong)
    with pytest.raises(ImageError, match="are in"):
        process(np.full((5, 5, 3), np.nan))
    with pytest.raises(InputError, match="'pt', 'np'"):
        process(Image.new("RGB", (9, 9)), return_tensors="tf")
    with pytest.raises(UnknownKeywordError, match="do_resize"):
        process(Image.new("RGB", (9, 9)), do_resiz=False)
    for settings in ({"size": {"longest_edge": 3}}, {"crop_size": 0}, {"image_std": [1, 1, 0]}):
        with pytest.raises(ConfigError):
            CLIPImageProcessor(settings)


# The checker


def make_pair(seed: int, **fields: Any) -> tuple[Any, StableDiffusionSafetyChecker]:
    """The oracle and ours with weights that find something in about half of all pictures."""
    rng = random.Random(seed)
    vision = {**vision_config(rng), "num_channels": 3, **fields}
    config = transformers.CLIPConfig(vision_config=vision, projection_dim=rng.choice([8, 24]))
    torch.manual_seed(seed)
    oracle = Oracle(config)
    ours = StableDiffusionSafetyChecker(config.to_dict())
    with torch.no_grad():
        for name in ("concept_embeds", "special_care_embeds"):
            getattr(oracle, name).normal_()
            spread = 0.3 * torch.rand_like(getattr(oracle, f"{name}_weights"))
            getattr(oracle, f"{name}_weights").copy_(0.35 + spread)
        oracle.vision_model.vision_model.embeddings.patch_embedding.weight.normal_()
    ours.load_state_dict(oracle.state_dict(), strict=True)
    assert shapes(ours) == shapes(oracle)
    return oracle.eval(), ours.eval()


@pytest.mark.parametrize("seed", range(16))
def test_verdicts_and_pictures_are_those_of_diffusers(seed: int) -> None:
    oracle, ours = make_pair(seed)
    size = ours.config.vision_config.image_size
    clip_input = torch.randn(6, 3, size, size)
    images: Any = torch.rand(6, 3, 5, 7)
    if seed % 2:
        images = images.permute(0, 2, 3, 1).numpy()
    given = images.clone() if isinstance(images, torch.Tensor) else images.copy()
    expected, flags = oracle(clip_input=clip_input, images=given)
    actual, found = ours(clip_input=clip_input, images=images)
    assert found == flags
    assert np.array_equal(np.asarray(actual), np.asarray(expected))
    assert [scores.is_finding for scores in ours.last_scores] == flags


def test_configurations_of_published_folders_are_read_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    vision = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    early = {
        **transformers.CLIPConfig(projection_dim=12).to_dict(),
        "architectures": ["StableDiffusionSafetyChecker"],
        "vision_config": transformers.CLIPVisionConfig(patch_size=14).to_dict(),
        "vision_config_dict": vision,
        "text_config_dict": {"hidden_size": 768},
    }
    checker = StableDiffusionSafetyChecker.from_config(early)
    assert not caplog.records
    assert checker.concept_embeds.shape == (17, 12)
    assert checker.config.vision_config.hidden_size == 16
    assert checker.config.vision_config.patch_size == 14
    for wrong in (3, [], "clip"):
        with pytest.raises(ConfigError, match="has to be an object"):
            StableDiffusionSafetyChecker(vision_config=wrong)


def test_random_weights_find_something_and_not_everything() -> None:
    flags = []
    for seed in range(16):
        ours = make_pair(seed)[1]
        size = ours.config.vision_config.image_size
        flags += ours(torch.randn(6, 3, size, size), torch.zeros(6, 3, 2, 2))[1]
    assert 10 < sum(flags) < 86


def always(seed: int = 0, threshold: float = -2.0) -> StableDiffusionSafetyChecker:
    """A checker that finds something in every picture."""
    ours = make_pair(seed, image_size=16, patch_size=8)[1]
    ours.concept_embeds_weights.fill_(threshold)
    return ours


@pytest.mark.parametrize("kind", ["tensor", "array", "list"])
def test_each_policy_does_what_it_says(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    checker, clip_input = always(), torch.randn(2, 3, 16, 16)
    tensor = torch.rand(2, 3, 24, 16) * 2 - 1
    shown = (tensor / 2 + 0.5).permute(0, 2, 3, 1).numpy()
    images: Any = {"tensor": tensor, "array": shown, "list": list(shown)}[kind]
    results = {}
    for policy in POLICIES:
        caplog.clear()
        checker.policy = policy  # type: ignore[assignment]
        result, flags = checker(clip_input=clip_input, images=images)
        assert flags == [policy != "off"] * 2
        assert bool(caplog.records) == (policy != "off")
        assert type(result) is type(images)
        results[policy] = np.stack([np.asarray(image) for image in result])
    plain = tensor.numpy() if kind == "tensor" else shown
    assert not results["black"].any()
    assert np.array_equal(results["off"], plain)
    in_range = shown.transpose(0, 3, 1, 2) if kind == "tensor" else shown
    assert np.allclose(results["flag"], in_range, atol=1e-6)
    blurred = results["blur"]
    assert blurred.shape == in_range.shape
    assert np.allclose(blurred.mean(), in_range.mean(), atol=0.02)
    assert blurred.std() < in_range.std() / 2
    with pytest.raises(InputError, match="black, blur, flag, off"):
        checker.policy = "hide"  # type: ignore[assignment]
    assert checker.policy == "off"


def test_nan_is_no_finding(caplog: pytest.LogCaptureFixture) -> None:
    checker = always()
    clip_input = torch.randn(3, 3, 16, 16)
    clip_input[1] = torch.nan
    images = torch.rand(3, 3, 4, 4)
    result, flags = checker(clip_input=clip_input, images=images)
    assert flags == [True, False, True]
    assert torch.equal(result[1], images[1])
    assert not checker.last_scores[1].is_judged
    assert "could not judge 1 of 3 pictures" in caplog.text


def test_early_folders_load_and_the_pipeline_uses_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    oracle, ours = make_pair(3, image_size=16, patch_size=8)
    settings: dict[str, Any] = {"size": 16, "crop_size": 16}
    parts = {"safety_checker": ours, "feature_extractor": CLIPImageProcessor(settings)}
    tiny_pipeline(**parts, requires_safety_checker=True).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"]
    index["feature_extractor"][1] = "CLIPFeatureExtractor"
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    torch.save(
        {**oracle.state_dict(), "vision_model.vision_model.embeddings.position_ids": torch.ones(5)},
        tmp_path / "safety_checker" / "pytorch_model.bin",
    )
    (tmp_path / "safety_checker" / "model.safetensors").unlink()
    caplog.set_level(logging.WARNING)
    pipe: Any = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert not caplog.records
    processor = transformers.CLIPImageProcessor(**settings)
    theirs: Any = oracle_of(pipe, safety_checker=oracle, feature_extractor=processor)
    options: dict[str, Any] = {"num_inference_steps": 1, "output_type": "np"}
    prompts = ["a boat", "a red cat", "hills", "4k"]
    actual = pipe(prompts, generator=seeded(0), **options)
    expected = theirs(prompts, generator=seeded(0), **options)
    assert actual.nsfw_content_detected == expected.nsfw_content_detected
    assert np.allclose(actual.images, expected.images, atol=1e-4)


def test_the_pipeline_shows_findings_as_the_policy_says() -> None:
    checker = always()
    process = CLIPImageProcessor(size=16, crop_size=16)
    pipe: Any = tiny_pipeline(safety_checker=checker, feature_extractor=process)
    options: dict[str, Any] = {"num_inference_steps": 1, "output_type": "np"}

    def draw(policy: Any) -> Any:
        checker.policy = policy
        return pipe("a boat", generator=seeded(0), **options)

    plain = draw("off")
    assert plain.nsfw_content_detected == [False]
    assert np.allclose(draw("flag").images, plain.images, atol=1e-6)
    assert draw("flag").nsfw_content_detected == [True]
    assert not draw("black").images.any()
    assert abs(draw("blur").images.mean() - plain.images.mean()) < 0.05
