"""Models for the command that are no folder: one file, and names on a hub."""

from __future__ import annotations

import os
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save as safetensors

from sfumato import assets
from sfumato.checkpoints.picture_files import read_recipe
from tests.checkpoints.hub_server import files_below, lay_out
from tests.checkpoints.original.synthetic import (
    checkpoint_tensors,
    networks,
    small_configs,
    write,
)
from tests.command import Run, Said

SMALL = ("--steps", 1, "-W", 64, "-H", 64, "-s", 1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint in one file."""
    configs = small_configs("stable-diffusion-v1")
    configs["text_encoder"]["vocab_size"] = 49408
    made = networks(configs)
    path = tmp_path_factory.mktemp("files") / "dream.safetensors"
    return write(checkpoint_tensors(made), path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a hub's models."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def drawn(said: Said) -> Path:
    assert said.code == 0, said.err
    return Path(said.out.strip())


def test_a_model_in_one_file_draws_and_is_named_by_it(run: Run, file: Path) -> None:
    first = drawn(run("a cat", "-m", file, *SMALL))
    recipe = read_recipe(first)
    assert recipe is not None
    assert (recipe.model, recipe.model_hash) == ("dream", assets.file_sha256(file)[:10])
    torch.save({"state_dict": dict(_tensors(file))}, "dream.ckpt")
    second = drawn(run("--from", first, "-m", "dream.ckpt", "-o", "b.png"))
    assert read_recipe(second).model_hash != recipe.model_hash  # type: ignore[union-attr]


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def test_a_file_of_something_else_is_said_to_be_that(run: Run) -> None:
    Path("x.safetensors").write_bytes(safetensors({"lora_unet_a.lora_up.weight": torch.ones(2, 2)}))
    said = run("a cat", "-m", "x.safetensors")
    assert said.code == 1
    assert "'x.safetensors' is not a whole model but a LoRA" in said.err
    assert "--model takes a checkpoint in one file" in said.err


def test_a_model_of_the_hub_draws_from_the_cache(run: Run, model: Path, cache: Path) -> None:
    defaults = b'{"steps": 3}'
    lay_out(cache, "someone/tiny", {**files_below(model), "generation.json": defaults})
    recipe = read_recipe(drawn(run("a cat", "-m", "someone/tiny")))
    assert recipe is not None
    assert (recipe.model, recipe.steps) == ("someone/tiny", 3)
    said = run("a cat", "-m", "someone/else")
    assert said.code == 1 and said.err.count("\n") == 1
    assert "no file or folder 'someone/else' on this machine" in said.err


def test_a_file_of_the_hub_draws_by_its_address(run: Run, file: Path, cache: Path) -> None:
    lay_out(cache, "someone/files", {"v1/dream.safetensors": file.read_bytes()})
    address = "https://huggingface.co/someone/files/blob/main/v1/dream.safetensors"
    assert read_recipe(drawn(run("a", "-m", address, *SMALL))).model == "dream"  # type: ignore[union-attr]


def test_a_lora_of_the_hub_changes_the_picture(run: Run, model: Path, cache: Path) -> None:
    layer = "unet.mid_block.attentions.0.proj_in"
    down, up = torch.randn(2, 64, 1, 1), torch.randn(64, 2, 1, 1)
    lora = safetensors({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up})
    lay_out(cache, "someone/style", {"pytorch_lora_weights.safetensors": lora})
    plain = drawn(run("a cat", "-m", model, "--steps", 2, "-s", 1))
    styled = drawn(run("a cat", "-m", model, "--steps", 2, "-s", 1, "--lora", "someone/style:0.8"))
    assert os.path.getsize(plain) and plain.read_bytes() != styled.read_bytes()
    assert "<lora:someone/style:0.8>" in read_recipe(styled).prompt  # type: ignore[union-attr]
