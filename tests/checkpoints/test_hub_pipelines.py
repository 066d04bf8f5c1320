"""Pipelines by their name on a hub: which files are fetched, and that they are what is loaded."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_safetensors

from sfumato import (
    ConfigError,
    DiffusionPipeline,
    InputError,
    MissingDependencyError,
    ModelNotFoundError,
    StableDiffusionPipeline,
)
from tests.checkpoints.hub_server import Hub, commit_of

NAME = "someone/tiny"

DESCRIPTIONS = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
]
PLAIN = [
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]


def fetched_by(hub: Hub, **kwargs: Any) -> list[str]:
    StableDiffusionPipeline.download(NAME, **kwargs)
    return hub.fetched()


def weights_in(folder: str | Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in Path(folder).rglob("*")
        if path.suffix in (".safetensors", ".bin")
    )


def test_a_pipeline_is_loaded_from_only_the_files_it_needs(
    hub: Hub, published: dict[str, bytes]
) -> None:
    hub.add(NAME, published)
    pipe = StableDiffusionPipeline.from_pretrained(NAME)
    assert hub.fetched() == sorted(DESCRIPTIONS + PLAIN)
    assert pipe.config._name_or_path == NAME
    stored = load_safetensors(published["unet/diffusion_pytorch_model.safetensors"])
    assert all(torch.equal(value, stored[key]) for key, value in pipe.unet.state_dict().items())


def test_a_second_load_asks_for_the_list_of_files_alone(
    hub: Hub, published: dict[str, bytes]
) -> None:
    hub.add(NAME, published)
    first = DiffusionPipeline.download(NAME)
    hub.requests.clear()
    pipe = DiffusionPipeline.from_pretrained(NAME)
    assert [(asked.method, asked.path) for asked in hub.requests] == [("GET", "api")]
    assert isinstance(pipe, StableDiffusionPipeline)
    assert DiffusionPipeline.download(NAME) == first
    assert DiffusionPipeline.download(first) == first


def test_a_variant_is_fetched_in_place_of_the_plain_weights(
    hub: Hub, published: dict[str, bytes]
) -> None:
    hub.add(NAME, published)
    half = [name.replace(".safetensors", ".fp16.safetensors") for name in PLAIN]
    assert fetched_by(hub, variant="fp16") == sorted(DESCRIPTIONS + half)
    pipe = StableDiffusionPipeline.from_pretrained(NAME, variant="fp16", torch_dtype=torch.float16)
    assert pipe.dtype == torch.float16
    assert hub.fetched() == []


def test_a_network_without_files_of_the_variant_comes_plain(
    hub: Hub, published: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    files = {k: v for k, v in published.items() if not k.startswith("vae/") or "fp16" not in k}
    hub.add(NAME, files)
    half = [name.replace(".safetensors", ".fp16.safetensors") for name in PLAIN[:2]]
    assert fetched_by(hub, variant="fp16") == sorted([*DESCRIPTIONS, *half, PLAIN[2]])
    caplog.set_level(logging.WARNING, "sfumato")
    StableDiffusionPipeline.from_pretrained(NAME, variant="fp16")
    assert len([text for text in caplog.messages if "no files of the variant" in text]) == 1


def test_a_variant_that_nobody_published_is_known_before_weights_are_fetched(
    hub: Hub, published: dict[str, bytes]
) -> None:
    hub.add(NAME, published)
    with pytest.raises(InputError, match="no such modeling files"):
        StableDiffusionPipeline.from_pretrained(NAME, variant="fp8")
    assert hub.fetched() == ["model_index.json"]


def test_pickles_are_fetched_when_they_are_asked_for_or_all_there_is(
    hub: Hub, published: dict[str, bytes]
) -> None:
    hub.add(NAME, published)
    pickles = [
        "text_encoder/pytorch_model.bin",
        "unet/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.bin",
    ]
    assert fetched_by(hub, use_safetensors=False) == sorted(DESCRIPTIONS + pickles)
    hub.add(NAME, {k: v for k, v in published.items() if not k.endswith(".safetensors")})
    folder = StableDiffusionPipeline.download(NAME)
    assert weights_in(folder) == pickles
    with pytest.raises(ModelNotFoundError, match=r"text_encoder.* no weights.*model\.safetensors"):
        StableDiffusionPipeline.download(NAME, use_safetensors=True)


def test_what_the_caller_has_or_does_without_is_not_fetched(
    hub: Hub, published: dict[str, bytes]
) -> None:
    index = json.loads(published["model_index.json"])
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]
    safety = {
        "safety_checker/config.json": b'{"a": 1}',
        "safety_checker/model.safetensors": b"large",
        "feature_extractor/preprocessor_config.json": b"{}",
    }
    files = {**published, **safety, "model_index.json": json.dumps(index).encode()}
    hub.add(NAME, files)
    assert fetched_by(hub, safety_checker=None, vae=object()) == sorted(
        [name for name in DESCRIPTIONS + PLAIN if not name.startswith("vae/")]
        + ["feature_extractor/preprocessor_config.json"]
    )
    assert fetched_by(hub, unet=None, text_encoder=None) == [
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    del files["safety_checker/config.json"]
    hub.add(NAME, files)
    with pytest.raises(ModelNotFoundError, match=r"pass `safety_checker=None`"):
        StableDiffusionPipeline.from_pretrained(NAME)


def test_shards_come_with_their_index(
    hub: Hub, published: dict[str, bytes], tmp_path: Path
) -> None:
    from tests.checkpoints.tiny import UNET, UNet2DConditionModel

    UNet2DConditionModel(UNET).save_pretrained(tmp_path / "unet", max_shard_size="40KB")
    shards = {f"unet/{p.name}": p.read_bytes() for p in (tmp_path / "unet").iterdir()}
    assert len(shards) > 4
    single = "unet/diffusion_pytorch_model.safetensors"
    hub.add(NAME, {k: v for k, v in published.items() if k != single} | shards)
    asked = fetched_by(hub)
    assert [name for name in asked if name.startswith("unet/")] == sorted(shards)
    loaded = UNet2DConditionModel.from_pretrained(NAME, subfolder="unet")
    assert loaded.num_parameters() == UNet2DConditionModel(UNET).num_parameters()
    assert hub.fetched() == []


def test_an_index_cannot_name_files_elsewhere(hub: Hub, published: dict[str, bytes]) -> None:
    index = json.dumps({"weight_map": {"a": "../../secret.safetensors"}}).encode()
    hub.add(NAME, {**published, "unet/diffusion_pytorch_model.safetensors.index.json": index})
    with pytest.raises(OSError, match="which is refused"):
        StableDiffusionPipeline.download(NAME)
    assert not any("secret" in name for name in hub.fetched())


def test_a_revision_is_a_branch_a_tag_or_a_commit(
    hub: Hub, published: dict[str, bytes], plain: dict[str, bytes]
) -> None:
    repository = hub.add(NAME, published)
    other = {**plain, "unet/config.json": plain["unet/config.json"] + b"\n"}
    repository.revisions |= {"fp16": other, "refs/pr/1": plain}
    for revision, files in (
        (None, published),
        ("fp16", other),
        ("refs/pr/1", plain),
        (commit_of(other), other),
    ):
        folder = Path(StableDiffusionPipeline.download(NAME, revision=revision))
        assert folder.name == commit_of(files)
        assert (folder / "unet" / "config.json").read_bytes() == files["unet/config.json"]


def test_a_new_commit_brings_only_what_has_changed(hub: Hub, published: dict[str, bytes]) -> None:
    hub.add(NAME, published)
    fetched_by(hub)
    changed = json.dumps({**json.loads(published["unet/config.json"]), "sample_size": 16}).encode()
    hub.add(NAME, {**published, "unet/config.json": changed})
    assert fetched_by(hub) == ["unet/config.json"]
    assert fetched_by(hub, force_download=True) == sorted(DESCRIPTIONS + PLAIN)


def test_what_would_run_code_or_is_unknown_is_refused_before_anything_large_is_fetched(
    hub: Hub, published: dict[str, bytes]
) -> None:
    hub.add(NAME, published)
    for keyword in ({"trust_remote_code": True}, {"custom_pipeline": "x"}):
        with pytest.raises(InputError, match="never runs code"):
            StableDiffusionPipeline.from_pretrained(NAME, **keyword)
    assert hub.requests == []
    index = json.loads(published["model_index.json"])
    index["unet"] = ["diffusers", "SomeOtherNetwork"]
    hub.add(NAME, {**published, "model_index.json": json.dumps(index).encode()})
    with pytest.raises(ConfigError, match="SomeOtherNetwork"):
        StableDiffusionPipeline.from_pretrained(NAME)
    assert hub.fetched() == ["model_index.json"]


def test_a_repository_of_single_files_says_how_to_load_them(hub: Hub) -> None:
    hub.add(NAME, {"README.md": b"", "dream.safetensors": b"weights"})
    with pytest.raises(ModelNotFoundError) as caught:
        StableDiffusionPipeline.from_pretrained(NAME)
    assert "no file 'model_index.json'" in str(caught.value)
    assert "from_single_file('someone/tiny/blob/main/dream.safetensors')" in str(caught.value)
    assert hub.fetched() == []


def test_a_folder_goes_before_a_name_of_the_same_spelling(
    hub: Hub, published: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, published)
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    with pytest.raises(ModelNotFoundError, match=r"has no file named `model_index\.json`"):
        StableDiffusionPipeline.from_pretrained(NAME)
    with pytest.raises(ModelNotFoundError, match="is not a folder on this machine"):
        StableDiffusionPipeline.from_pretrained(Path("someone", "else"))
    assert hub.requests == []


def test_without_the_package_for_it_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError) as caught:
        StableDiffusionPipeline.from_pretrained(NAME)
    assert "pip install 'sfumato[hub]'" in str(caught.value)
    assert "'someone/tiny' is not a folder on this machine" in str(caught.value)
    with pytest.raises(ModelNotFoundError, match="not a folder"):
        StableDiffusionPipeline.from_pretrained(f".{os.sep}{NAME}")
