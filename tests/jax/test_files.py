"""Single files, LoRAs, textual inversions and the safety checker in JAX, as in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sfumato import CLIPImageProcessor, StableDiffusionPipeline, StableDiffusionSafetyChecker
from sfumato.errors import AdapterError, CheckpointError, InputError
from tests.checkpoints.original.synthetic import checkpoint_tensors, networks, tiny_configs
from tests.pipelines.tiny import WIDTH, tiny_pipeline

jax = pytest.importorskip("jax")

from sfumato.jax.devices import replicate, shard  # noqa: E402
from sfumato.jax.pipeline import FlaxStableDiffusionPipeline  # noqa: E402

KEY = jax.random.PRNGKey(0)
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(path)
    return path


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def draw(pipeline: Any, params: Any, prompt: str = "a cat") -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    ids = pipeline.prepare_inputs(prompt)
    return np.asarray(pipeline(ids, params, KEY, 2, latents=noise, jit=True).images)


@pytest.mark.parametrize("family", ["stable-diffusion-v1", "stable-diffusion-v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_checkpoint_in_one_file_gives_the_weights_that_torch_reads(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    tensors = checkpoint_tensors(networks(tiny_configs(family)))
    halved = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    save_file({k: v.contiguous() for k, v in halved.items()}, file)
    pipeline, params = FlaxStableDiffusionPipeline.from_single_file(file)
    pipe = StableDiffusionPipeline.from_single_file(file, torch_dtype=dtype)
    for name in ("unet", "vae", "text_encoder"):
        expected = getattr(pipe, name).state_dict()
        assert expected.keys() == params[name].keys()
        for key, tensor in expected.items():
            assert params[name][key].dtype == str(dtype).removeprefix("torch.")
            found = np.asarray(params[name][key], np.float32)
            assert np.array_equal(found, tensor.float().numpy()), key
    assert type(pipeline.scheduler).__name__ == f"Flax{type(pipe.scheduler).__name__}"
    assert pipeline.unet.config == pipe.unet.config


def test_a_file_that_is_not_there_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        FlaxStableDiffusionPipeline.from_single_file(tmp_path / "none.safetensors")


def lora(path: Path, name: str = LAYER, rank: int = 2) -> Path:
    generator = torch.Generator().manual_seed(0)
    stem = "lora_unet_" + name.replace(".", "_")
    width = tiny_pipeline().unet.get_submodule(LAYER)
    tensors = {
        f"{stem}.lora_down.weight": torch.randn(rank, width.in_features, generator=generator),
        f"{stem}.lora_up.weight": torch.randn(width.out_features, rank, generator=generator),
        f"{stem}.alpha": torch.tensor(1.0),
    }
    save_file(tensors, path)
    return path


def test_a_lora_merged_into_parameters_is_a_lora_fused_in_torch(
    folder: Path, tmp_path: Path
) -> None:
    file = lora(tmp_path / "lora.safetensors")
    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(folder)
    merged = pipeline.load_lora_weights(params, file, scale=0.7)
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.load_lora_weights(file)
    pipe.fuse_lora(lora_scale=0.7)
    expected = pipe.unet.get_submodule(LAYER).weight.detach().numpy()
    name = f"{LAYER}.weight"
    np.testing.assert_allclose(merged["unet"][name], expected, rtol=0, atol=1e-6)
    assert not np.array_equal(merged["unet"][name], params["unet"][name])
    changed = [key for key in params["unet"] if merged["unet"][key] is not params["unet"][key]]
    assert changed == [name]


def test_a_lora_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(folder)
    with pytest.raises(AdapterError, match="None of the 3 tensors"):
        pipeline.load_lora_weights(params, lora(tmp_path / "a.safetensors", "no.such.layer"))
    with pytest.raises(InputError, match="`scale` has to be a finite number"):
        pipeline.load_lora_weights(params, lora(tmp_path / "b.safetensors"), float("nan"))


def test_textual_inversions_are_words_as_in_torch(folder: Path) -> None:
    vectors = {"<cat>": torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))}
    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(folder)
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_textual_inversion(vectors)
    taught = pipeline.load_textual_inversion(params, vectors)
    noise = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    expected = pipe(
        "a <cat>", latents=torch.from_numpy(noise), num_inference_steps=2, output_type="np"
    ).images
    assert np.abs(draw(pipeline, taught, "a <cat>") - expected).max() < 1e-4
    with pytest.raises(InputError, match="already in tokenizer vocabulary"):
        pipeline.load_textual_inversion(taught, vectors)


@pytest.fixture(scope="module")
def judged_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose checker finds something in about half of all pictures."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "projection_dim": 8,
    }  # fmt: skip
    checker = StableDiffusionSafetyChecker(vision_config=vision, projection_dim=8).eval()
    with torch.no_grad():
        for name, parameter in checker.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.01 if "weights" in name else 0.5))
    extractor = CLIPImageProcessor(size=16, crop_size=16)
    pipe = tiny_pipeline(safety_checker=checker, feature_extractor=extractor)
    path = tmp_path_factory.mktemp("judged")
    pipe.save_pretrained(path)
    return path


def test_pictures_are_judged_as_in_torch(judged_folder: Path) -> None:
    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(judged_folder)
    pipe = StableDiffusionPipeline.from_pretrained(judged_folder)
    images = np.random.default_rng(0).random((6, 16, 16, 3)).astype(np.float32)
    pixels = pipeline.feature_extractor(
        pipeline.numpy_to_pil(images), return_tensors="np"
    ).pixel_values
    found = pipeline.safety_checker.scores(params["safety_checker"], pixels)
    expected = pipe.safety_checker.scores(torch.from_numpy(pixels))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.concepts, b.concepts, atol=1.1e-3)
        np.testing.assert_allclose(a.special_care, b.special_care, atol=1.1e-3)
    checked, flags = pipeline.safety_checker.check(
        images, pipeline.feature_extractor, params["safety_checker"]
    )
    assert flags == [score.is_finding for score in expected]
    for image, seen, flag in zip(images, checked, flags, strict=True):
        assert np.array_equal(seen, np.zeros_like(image) if flag else image)
    out = pipeline(pipeline.prepare_inputs(["a", "b"]), params, KEY, 1, jit=True)
    assert len(out.nsfw_content_detected) == 2
    for image, flag in zip(out.images, out.nsfw_content_detected, strict=True):
        assert (np.asarray(image).max() == 0) == flag
    pipeline.save_pretrained(judged_folder / "again", params)
    _, reread = FlaxStableDiffusionPipeline.from_pretrained(judged_folder / "again")
    assert same(params["safety_checker"], reread["safety_checker"])


def test_the_picture_that_is_found_is_the_one_that_is_blackened(
    judged_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(judged_folder)
    ids = pipeline.prepare_inputs(["a", "b", "c"])
    checked = pipeline.safety_checker.check

    def third_alone(images: Any, *others: Any) -> Any:
        _, flags = checked(images, *others)
        assert images.shape == (3, 16, 16, 3) and len(flags) == 3
        keep = np.array([1, 1, 0], np.float32)[:, None, None, None]
        return images * keep, [False, False, True]

    monkeypatch.setattr(pipeline.safety_checker, "check", third_alone)
    for args in (
        (ids, params, KEY),
        (shard(ids, 1), replicate(params, 1), jax.random.split(KEY, 1)),
    ):
        out = pipeline(*args, 1, jit=False)
        assert out.images.shape == (*args[0].shape[:-1], 16, 16, 3)
        assert out.nsfw_content_detected == [False, False, True]
        brightest = np.asarray(out.images).reshape(3, -1).max(axis=1)
        assert (brightest > 0).tolist() == [True, True, False]


def test_a_folder_is_loaded_without_its_checker_when_asked(judged_folder: Path) -> None:
    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(
        judged_folder, safety_checker=None
    )
    assert pipeline.safety_checker is None and "safety_checker" not in params
