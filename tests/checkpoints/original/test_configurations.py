"""Configurations for one file: a folder's, the original yaml, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from sfumato import (
    AutoencoderKL,
    CLIPTokenizer,
    DDIMScheduler,
    StableDiffusionPipeline,
)
from sfumato.checkpoints.original.loading import open_checkpoint
from sfumato.errors import (
    ConfigError,
    InputError,
    ModelNotFoundError,
    WeightsMismatchError,
)
from tests.checkpoints.original.synthetic import (
    assert_same,
    original_yaml,
)

UNET = "model.diffusion_model."
CLIP = "cond_stage_model.transformer."


# Configurations


def test_a_folders_configurations_are_used_and_none_of_its_weights(
    v1: dict[str, Tensor], v1_networks: dict[str, nn.Module], tmp_path: Path
) -> None:
    pipe = StableDiffusionPipeline.from_single_file(v1)
    pipe.vae.config = pipe.vae.config.replace(scaling_factor=0.3)
    pipe.unet.config = pipe.unet.config.replace(sample_size=40)
    pipe.scheduler = DDIMScheduler(
        beta_end=0.02, prediction_type="v_prediction", steps_offset=1, clip_sample=False
    )
    pipe.tokenizer = CLIPTokenizer(pad_token="!")
    pipe.save_pretrained(tmp_path)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.write_bytes(b"not weights")
    loaded = StableDiffusionPipeline.from_single_file(v1, config=tmp_path)
    assert loaded.vae.config.scaling_factor == 0.3
    assert loaded.unet.config.sample_size == 40
    assert isinstance(loaded.scheduler, DDIMScheduler)
    assert (loaded.scheduler.config.beta_end, loaded.tokenizer.pad_token) == (0.02, "!")
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert_same(loaded.unet, v1_networks["unet"])
    for given in ({"config": tmp_path / "vae"}, {"config": tmp_path, "subfolder": "vae"}):
        assert AutoencoderKL.from_single_file(v1, **given).config.scaling_factor == 0.3
    asked = StableDiffusionPipeline.from_single_file(
        v1, config=str(tmp_path), prediction_type="epsilon"
    )
    assert asked.scheduler.config.prediction_type == "epsilon"


def test_a_folder_that_does_not_fit_is_an_error_with_the_shapes(
    v1: dict[str, Tensor], v2: dict[str, Tensor], tmp_path: Path
) -> None:
    StableDiffusionPipeline.from_single_file(v2).save_pretrained(tmp_path)
    with pytest.raises(WeightsMismatchError, match="of another shape"):
        StableDiffusionPipeline.from_single_file(v1, config=tmp_path)


def test_the_hubs_name_of_a_published_checkpoint_needs_no_hub(v2: dict[str, Tensor]) -> None:
    pipe = StableDiffusionPipeline.from_single_file(v2, config="stabilityai/stable-diffusion-2-1")
    assert pipe.unet.config.sample_size == 96
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    for name, said in (
        ("someone/something", "hub's cache"),
        ("a/b/c", "no folder on this machine"),
    ):
        with pytest.raises(ModelNotFoundError, match=said):
            StableDiffusionPipeline.from_single_file(v2, config=name)


@pytest.mark.parametrize("how", ["yaml", "json", "bytes", "stream", "dict"])
def test_an_original_configuration_is_honoured(
    v1: dict[str, Tensor], tmp_path: Path, how: str
) -> None:
    import io

    import yaml

    content = original_yaml(parameterization="v")
    text = yaml.safe_dump(content) if how != "json" else json.dumps(content)
    (tmp_path / "file").write_text(text)
    given: Any = {
        "bytes": text.encode(),
        "stream": io.BytesIO(text.encode()),
        "dict": content,
    }.get(how, tmp_path / "file")
    pipe = StableDiffusionPipeline.from_single_file(v1, original_config=given)
    assert pipe.unet.config.attention_head_dim == 4
    assert pipe.unet.config.sample_size == 48
    assert pipe.vae.config.scaling_factor == 0.2
    scheduler = pipe.scheduler.config
    assert (scheduler.beta_start, scheduler.beta_end) == (0.001, 0.015)
    assert (scheduler.num_train_timesteps, scheduler.prediction_type) == (900, "v_prediction")
    assert scheduler.beta_schedule == "scaled_linear", "what the original code calls linear"


def test_diffusers_reads_the_same_from_original_configurations(v1: dict[str, Tensor]) -> None:
    from diffusers.loaders import single_file_utils as oracle

    for changes in ({}, {"num_head_channels": 16, "use_linear_in_transformer": True}):
        content = original_yaml()
        params = content["model"]["params"]["unet_config"]["params"]
        params |= changes
        if changes:
            del params["num_heads"]
        checkpoint = open_checkpoint(v1, original_config=content)
        theirs = oracle.create_unet_diffusers_config_from_ldm(content, v1)
        ours = {**checkpoint.config("unet")}
        for key in theirs:
            if key not in ("sample_size", "transformer_layers_per_block"):
                assert ours.get(key) == theirs[key], key
        vae = oracle.create_vae_diffusers_config_from_ldm(content, v1)
        found = checkpoint.config("vae")
        assert all(found[key] == vae[key] for key in vae if key != "sample_size")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unet_config": None}, "has to be a table"),
        ({"parameterization": "w"}, "parameterization"),
        ({"beta_schedule": "wavy"}, "beta_schedule"),
        ({"linear_end": "much"}, "`linear_end` has to be a number"),
        ({"image_size": -1}, "`image_size` has to be an integer"),
        ({"unet_config": {"params": {"model_channels": 10**9, "channel_mult": [1]}}}, "list"),
    ],
)
def test_a_wrong_original_configuration_is_an_error_with_the_field(
    v1: dict[str, Tensor], change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        open_checkpoint(v1, original_config=original_yaml(**change))


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:os.system ['true']",
        "a: &a {x: 1}\nb: {<<: [*a, *a]}",
        "[" * 5000,
        "model: [",
        "- 1",
        "x" * 200_000,
    ],
)
def test_a_hostile_original_configuration_is_refused(
    v1: dict[str, Tensor], tmp_path: Path, text: str
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError):
        open_checkpoint(v1, original_config=tmp_path / "c.yaml")


def test_yaml_without_pyyaml_says_what_to_install(
    v1: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sfumato\[yaml\]'"):
        open_checkpoint(v1, original_config=b"model: {params: {}}")
    as_json = json.dumps(original_yaml()).encode()
    assert open_checkpoint(v1, original_config=as_json).original is not None


def test_configurations_from_two_places_or_from_the_web_are_an_error(
    v1: dict[str, Tensor],
) -> None:
    with pytest.raises(InputError, match="not both"):
        open_checkpoint(v1, config="a/b", original_config={})
    with pytest.raises(ConfigError, match="fetches nothing"):
        open_checkpoint(v1, original_config="https://example.org/v1-inference.yaml")
