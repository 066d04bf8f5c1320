"""The command with parts of a guidance, previews, another autoencoder and prompts from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.checkpoints.metadata import parse_infotext, to_infotext
from sfumato.checkpoints.picture_files import read_recipe
from sfumato.cli.steering import NAMES, check_steering, guidance_parts, read_steering
from sfumato.errors import InputError
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.autoencoder_tiny import AutoencoderTiny
from tests.command import Run, Said

QUICK = ("--steps", 3, "--seed", 5)
EULER = ("--sampler", "Euler")
NOTHING = dict.fromkeys(NAMES)


def _pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _drawn(said: Said) -> str:
    assert said.code == 0, said.err
    return said.out.strip()


def test_parts_are_recorded_and_drawn_again(run: Run, embedded: Path) -> None:
    options = ("--pag", 2, "--sag", 0.5, "--cfg-pp", 0.6, "--mimic-scale", 5)
    path = _drawn(run("a cat", *options, "--guidance-interval", "0,0.8", *QUICK))
    recipe: Any = read_recipe(path)
    assert recipe.guidance == "interval 0 0.8 + cfg++ 0.6 + pag 2 + sag 0.5 + thresholding 5"
    assert parse_infotext(to_infotext(recipe)).guidance == recipe.guidance
    assert (_pixels(_drawn(run("--from", path))) == _pixels(path)).all()
    assert (_pixels(_drawn(run("a cat", *QUICK))) != _pixels(path)).any()


@pytest.mark.parametrize("option", ["pag", "sag", "cfg_pp", "mimic_scale"])
def test_each_part_changes_the_picture(run: Run, embedded: Path, option: str) -> None:
    plain = _pixels(_drawn(run("a cat", *QUICK)))
    path = _drawn(run("a cat", "--" + option.replace("_", "-"), 2.5, *QUICK))
    assert (_pixels(path) != plain).any()


def test_a_text_stands_for_parts() -> None:
    given = {**NOTHING, "guidance_interval": "0.1,0.75", "pag": 3.0, "cfg_pp": 1e-5}
    text = read_steering(given)["guidance"]
    assert check_steering(text) == [("interval", (0.1, 0.75)), ("cfg++", (1e-5,)), ("pag", (3.0,))]
    kinds = [type(part).__name__ for part in guidance_parts(text)]
    assert kinds == ["IntervalGuidance", "CFGPlusPlus", "PerturbedAttentionGuidance"]
    assert read_steering(NOTHING) == {}
    assert check_steering(None) == []


WRONG = ("fog 3", "pag", "pag 1 2", "interval 1", "pag 3 +", "pag -1", "+")


@pytest.mark.parametrize("text", WRONG)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        check_steering(text)


@pytest.mark.parametrize("text", ["1", "0.5,0.2", "0,2", "a,b", "nan,1"])
def test_a_wrong_interval_is_refused(run: Run, embedded: Path, text: str) -> None:
    said = run("a cat", "--guidance-interval", text)
    assert said.code == 2
    assert "0.1,0.8" in said.err


def test_a_small_picture_is_written_while_drawing(
    run: Run, embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfumato.cli import previewing

    written: list[bytes] = []
    write = previewing.write_file_atomically
    monkeypatch.setattr(
        previewing,
        "write_file_atomically",
        lambda path, data: (written.append(data), write(path, data)),
    )
    file = tmp_path / "now.png"
    path = _drawn(run("a cat", "--preview", file, *QUICK, *EULER))
    assert len(written) == 3
    assert len(set(written)) == 3
    with Image.open(file) as preview, Image.open(path) as picture:
        assert max(preview.size) == 256
        assert preview.width / preview.height == picture.width / picture.height
    assert (
        _pixels(_drawn(run("a cat", *QUICK, *EULER, "--backend", "torch"))) == _pixels(path)
    ).all()
    _drawn(run("a cat", "--preview", file, "--preview-interval", 2, *QUICK, *EULER))
    assert len(written) == 5  # after step 2, and the last


@pytest.mark.parametrize("name", ["now.jpg", "no/folder.png", "."])
def test_a_preview_has_to_be_a_png_in_a_folder(
    run: Run, embedded: Path, tmp_path: Path, name: str
) -> None:
    assert run("a cat", "--preview", tmp_path / name).code == 2


def test_another_autoencoder_decodes(run: Run, embedded: Path, tmp_path: Path) -> None:
    plain = _drawn(run("a cat", *QUICK, "--backend", "torch"))
    same = _drawn(run("a cat", "--vae", embedded / "vae", *QUICK))
    assert (_pixels(same) == _pixels(plain)).all()
    AutoencoderTiny().save_pretrained(tmp_path / "tiny")
    said = run("a cat", "--vae", tmp_path / "tiny", *QUICK)
    assert (said.code, "latents of" in said.err) == (2, True)
    torch.manual_seed(0)
    own = AutoencoderKL.from_pretrained(embedded / "vae")
    AutoencoderKL(own.config).save_pretrained(tmp_path / "other")
    other = _drawn(run("a cat", "--vae", tmp_path / "other", *QUICK))
    assert (_pixels(other) != _pixels(plain)).any()
    recipe: Any = read_recipe(other)
    assert recipe.vae == str(tmp_path / "other")
    assert "other" not in to_infotext(recipe)
    assert run("a cat", "--vae", tmp_path / "none").code == 1


def test_prompts_come_from_the_lines_of_a_file(run: Run, embedded: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n", "utf-8")
    said = run("--from-file", tmp_path / "prompts.txt", *QUICK)
    recipes = [read_recipe(path) for path in _drawn(said).splitlines()]
    assert [recipe and recipe.prompt for recipe in recipes] == ["a cat", "a dog"]
    assert run("a cat", "--from-file", tmp_path / "prompts.txt").code == 2
    assert run("--from-file", tmp_path / "none.txt").code == 1
    (tmp_path / "empty.txt").write_text("\n", "utf-8")
    assert "no prompt in" in run("--from-file", tmp_path / "empty.txt").err


def test_a_quiet_run_says_nothing_but_errors(run: Run, embedded: Path) -> None:
    said = run("a cat", "-q", *QUICK)
    assert (said.code, said.err) == (0, "")
    assert "steps" in run("a cat", "-q", "--steps", 0).err
    assert run("a cat", *QUICK).err != ""


def test_noise_of_samplers_moves_with_a_delta(run: Run, embedded: Path) -> None:
    paths = [
        _drawn(run("a cat", "--sampler", "Euler a", *QUICK, "--ensd", delta))
        for delta in (0, 31337)
    ]
    first, second = (read_recipe(path) for path in paths)
    assert first is not None
    assert second is not None
    assert "ENSD" not in to_infotext(first)
    assert "ENSD: 31337" in to_infotext(second)
    assert (_pixels(paths[0]) != _pixels(paths[1])).any()
    assert (_pixels(_drawn(run("--from", paths[1]))) == _pixels(paths[1])).all()
