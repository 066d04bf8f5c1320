"""Which backend the command draws with, and that a picture says it and can be drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.checkpoints.picture_files import read_recipe
from sfumato.checkpoints.png import encode_png
from sfumato.cli.backends import BACKENDS, choose
from sfumato.cli.request import build_request
from tests.command import Run, run_process

SMALL = ("a red apple", "--steps", 3, "--seed", 5)


def backend_of(replay: Path | None = None, backend: str | None = None, **given: Any) -> str:
    options: dict[str, Any] = {
        "loras": [], "lora_dir": None, "model": None, "count": 1, "device": "auto",
        "threads": None,
    }  # fmt: skip
    for name in ("model", "count", "device", "threads"):
        if name in given:
            options[name] = given.pop(name)
    prompts = (given.pop("prompt", "a cat"),)
    return choose(build_request(given, prompts=prompts, replay=replay, backend=backend, **options))[
        0
    ]


def test_small_pictures_of_the_embedded_model_need_no_torch() -> None:
    cases: list[dict[str, Any]] = [
        {},
        {"steps": 40},
        {"prompt": "a (red:1.2) [apple] AND a cat", "negative_prompt": "blue"},
        {"sampler": "Euler a", "schedule": "Karras"},
        {"cfg_scale": 1.0, "clip_skip": 2, "eta": 0.5, "guidance_rescale": 0.3},
        {"width": 96, "height": 160},
        {"rng": "nvidia"},
        {"dtype": "float32", "device": "cpu"},
        {"count": 2},
    ]
    for given in cases:
        assert backend_of(**given) == "numpy", given


def test_everything_else_is_drawn_by_torch(model: Path) -> None:
    cases: list[dict[str, Any]] = [
        {"model": str(model)},
        {"steps": 200},
        {"count": 50},
        {"width": 512, "height": 512},
        {"sampler": "DPM++ SDE"},
        {"prompt_syntax": "literal"},
        {"rng": "comfyui"},
        {"dtype": "bfloat16"},
        {"device": "cuda"},
        {"threads": 1},
        {"tiling": "x"},
        {"hires_scale": 2.0},
        {"seed": 1, "variation_seed": 2, "variation_strength": 0.2},
        {"memory": "vae-tiling"},
    ]
    for given in cases:
        assert backend_of(**given) == "torch", given


def test_a_precision_from_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_DTYPE", "bfloat16")
    assert backend_of() == "torch"
    assert backend_of(dtype="float32") == "numpy"


def test_what_is_asked_for_is_taken_or_refused_with_the_reason(run: Run, tmp_path: Path) -> None:
    assert backend_of(backend="torch") == "torch"
    assert backend_of(backend="numpy", steps=500) == "numpy"
    out = tmp_path / "x.png"
    said = run(*SMALL, "--backend", "numpy", "--hires", 2, "-o", out)
    assert said.code == 2 and "The backend numpy has no --hires. Leave out --backend." in said.err
    said = run(*SMALL, "--backend", "nump", "-o", out)
    assert said.code == 2 and "Did you mean 'numpy'?" in said.err
    assert all(name in said.err for name in BACKENDS)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of the embedded model as the command draws it, in a process of its own."""
    path = tmp_path_factory.mktemp("drawn") / "apple.png"
    said = run_process(*SMALL, "-v", "-o", path)
    assert said.code == 0, said.err
    assert "Drawing with numpy, because the work is small." in said.err
    return path


def test_a_picture_says_what_computed_it_and_comes_again_to_the_byte(
    drawn: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(drawn)
    assert recipe is not None
    assert (recipe.backend, recipe.dtype, recipe.seed) == ("numpy", "float32", 5)
    said = run_process("--from", drawn, "-o", tmp_path / "again.png")
    assert said.code == 0, said.err
    assert (tmp_path / "again.png").read_bytes() == drawn.read_bytes()


def test_torch_draws_the_same_picture_up_to_rounding(drawn: Path, run: Run, tmp_path: Path) -> None:
    said = run(*SMALL, "--backend", "torch", "-o", tmp_path / "x.png")
    assert said.code == 0, said.err
    ours, theirs = (np.asarray(Image.open(p)).astype(int) for p in (drawn, tmp_path / "x.png"))
    assert np.abs(ours - theirs).max() <= 1
    assert backend_of(replay=tmp_path / "x.png") == "torch"


def test_a_picture_from_before_there_was_a_choice_is_drawn_by_torch(
    drawn: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(drawn)
    assert recipe is not None
    image = Image.open(drawn)
    (tmp_path / "old.png").write_bytes(encode_png(image, recipe.replace(backend=None)))
    assert backend_of(replay=tmp_path / "old.png") == "torch"
    (tmp_path / "odd.png").write_bytes(encode_png(image, recipe.replace(backend="abacus")))
    assert backend_of(replay=tmp_path / "odd.png") == "numpy"
    assert backend_of(replay=drawn, sampler="DPM++ SDE") == "torch"


def test_a_damaged_model_is_told_by_its_manifest(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from sfumato.assets import embedded_model_path
    from sfumato.cli import models

    folder = tmp_path / "model"
    shutil.copytree(embedded_model_path(), folder)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 255
    weights.write_bytes(content)
    monkeypatch.setattr(models, "embedded_model_path", lambda: folder)
    said = run(*SMALL, "-o", tmp_path / "x.png")
    assert said.code == 1 and "is damaged: its SHA-256 is" in said.err
    assert not (tmp_path / "x.png").exists()
