"""Checkpoints in one file draw what diffusers draws from the same weights in a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from sfumato import CLIPTokenizer, StableDiffusionPipeline
from sfumato.checkpoints.components import save_components
from sfumato.checkpoints.original.families import FAMILIES, family
from tests.checkpoints.original.synthetic import (
    checkpoint_tensors,
    networks,
    predicting,
    tiny_configs,
    write,
)
from tests.parity.networks import relative_error
from tests.parity.oracle_pipeline import distance
from tests.parity.single_file_child import latents, network_outputs

ROOT = Path(__file__).parents[2]
DRAWING = ("stable-diffusion-v1", "stable-diffusion-v2", "stable-diffusion-v2-v")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of every family in one file, and beside it a folder of the same weights."""
    place = tmp_path_factory.mktemp("families")
    made: dict[str, Path] = {}
    for seed, name in enumerate(FAMILIES):
        tensors = checkpoint_tensors(networks(tiny_configs(name), seed))
        if "v2" in name:
            tensors = predicting(tensors, velocity=name.endswith("-v"))
        suffix = ".ckpt" if seed % 2 else ".safetensors"
        made[name] = write(tensors, place / f"{name}{suffix}")
        _write_folder(name, tensors, seed, place / name)
    return made


def _write_folder(name: str, tensors: dict[str, torch.Tensor], seed: int, folder: Path) -> None:
    """The same weights in diffusers' layout, without any help of the code under test."""
    made = networks(tiny_configs(name), seed)
    if "v2" in name:
        statistic = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
        bias = made["unet"].up_blocks[3].attentions[2].transformer_blocks[0].norm1.bias  # type: ignore[union-attr, index]
        bias.data = tensors[f"model.diffusion_model.{statistic}"].clone()  # type: ignore[union-attr]
    kind = family(name)
    scheduler = dict(kind.scheduler)
    scheduler_class = getattr(diffusers, scheduler.pop("_class_name"))
    parts: dict[str, Any] = {
        **made,
        "tokenizer": CLIPTokenizer(**kind.tokenizer),
        "scheduler": scheduler_class.from_config(scheduler),
    }
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    absent = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    save_components(folder, {**parts, **absent}, index=index)


@pytest.fixture(scope="module")
def ours(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process without sockets makes of the files."""
    output = tmp_path_factory.mktemp("offline") / "results.pt"
    names = json.dumps([str(file) for file in files.values()])
    subprocess.run(
        [sys.executable, "-m", "tests.parity.single_file_child", names, str(output)],
        check=True,
        cwd=ROOT,
        timeout=300,
    )
    results = torch.load(output, weights_only=True)
    return {name: results[file.name] for name, file in files.items()}


def oracle(folder: Path) -> Any:
    """diffusers' pipeline from the folder."""
    return diffusers.StableDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_every_family_compute_what_diffusers_does_from_a_folder(
    name: str, files: dict[str, Path], ours: dict[str, Any]
) -> None:
    pipe = oracle(files[name].with_suffix(""))
    for part, expected in network_outputs(pipe).items():
        assert relative_error(ours[name][part], expected) < 2e-5, part


@pytest.mark.parametrize("name", DRAWING)
def test_the_picture_is_that_of_diffusers_from_a_folder(
    name: str, files: dict[str, Path], ours: dict[str, Any]
) -> None:
    expected = latents(oracle(files[name].with_suffix("")))
    assert distance(ours[name]["drawn"], expected) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_bit_for_bit_those_that_diffusers_reads_from_the_same_file(
    name: str, files: dict[str, Path]
) -> None:
    folder, file = files[name].with_suffix(""), files[name]
    theirs = diffusers.StableDiffusionPipeline.from_single_file(file, config=str(folder))
    pipe = StableDiffusionPipeline.from_single_file(file)
    for part in ("unet", "vae", "text_encoder"):
        expected = getattr(theirs, part).state_dict()
        found = getattr(pipe, part).state_dict()
        expected.pop("text_model.embeddings.position_ids", None)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found), part


@pytest.mark.parametrize("name", FAMILIES)
def test_configurations_are_those_that_diffusers_computes_with(
    name: str, files: dict[str, Path]
) -> None:
    published = oracle(files[name].with_suffix(""))
    pipe = StableDiffusionPipeline.from_single_file(files[name])
    for part in ("unet", "vae"):
        theirs, found = getattr(published, part).config, getattr(pipe, part).config
        expected = {key: theirs[key] for key in found}
        assert found == type(found).from_dict(expected)
    fields = [key for key in family(name).scheduler if not key.startswith("_")]
    for key in fields:
        assert pipe.scheduler.config.get(key) == published.scheduler.config[key], key
    assert type(pipe.scheduler).__name__ == type(published.scheduler).__name__
    assert pipe.tokenizer.pad_token_id == published.tokenizer.pad_token_id


def test_stable_diffusion_2_pads_prompts_with_id_0(files: dict[str, Path]) -> None:
    pipe = StableDiffusionPipeline.from_single_file(files["stable-diffusion-v2"])
    ids = pipe.tokenizer("an apple", padding="max_length", return_tensors="pt")["input_ids"]
    theirs = oracle(files["stable-diffusion-v2"].with_suffix("")).tokenizer(
        "an apple", padding="max_length", return_tensors="pt"
    )["input_ids"]
    assert torch.equal(ids, theirs)
    assert ids[0, -1] == 0 and pipe.tokenizer.pad_token == "!"
