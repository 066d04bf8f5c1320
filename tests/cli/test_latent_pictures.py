"""The command with models that enlarge a picture, fill a part of it, or lie in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato import LDMInpaintPipeline, LDMPipeline, LDMSuperResolutionPipeline
from sfumato.checkpoints.picture_files import read_recipe
from tests.command import Run, Said
from tests.pipelines.tiny_latent import parts, tiny_vq

QUICK = ("--steps", 2, "--seed", 5)


def drawn(said: Said) -> Any:
    assert said.code == 0, said.err
    with Image.open(said.out.strip()) as picture:
        return np.asarray(picture)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Folders of models, a model in one file, a picture and a mask."""
    LDMSuperResolutionPipeline(**parts(in_channels=6)).save_pretrained(tmp_path / "larger")
    LDMInpaintPipeline(**parts(in_channels=7)).save_pretrained(tmp_path / "fill")
    groups = {"norm_num_groups": 32}  # as in every file of the original code
    vq = tiny_vq(block_out_channels=(32, 32), **groups)
    plain = LDMPipeline(**{**parts(attention_head_dim=32, **groups), "vqvae": vq})
    plain.save_pretrained(tmp_path / "folder")
    plain.save_single_file(tmp_path / "file.safetensors")
    noise = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    mask = np.zeros((32, 64), np.uint8)
    mask[:, :32] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return {path.stem: path for path in tmp_path.iterdir()}


def test_a_picture_is_enlarged_and_enlarged_again(run: Run, files: dict[str, Path]) -> None:
    said = run("--model", files["larger"], "--init-img", files["picture"], *QUICK)
    assert drawn(said).shape == (64, 128, 3)
    recipe: Any = read_recipe(said.out.strip())
    assert recipe.init_image == str(files["picture"])


def test_a_masked_part_is_filled_and_the_rest_kept(run: Run, files: dict[str, Path]) -> None:
    given = ("--init-img", files["picture"], "--mask", files["mask"])
    filled = drawn(run("--model", files["fill"], *given, *QUICK))
    with Image.open(files["picture"]) as picture:
        known = np.asarray(picture)
    assert (filled[:, 32:] == known[:, 32:]).all()
    assert (filled[:, :32] != known[:, :32]).any()


def test_a_model_in_one_file_draws_what_its_folder_draws(run: Run, files: dict[str, Path]) -> None:
    """At least in size: the noise schedule is that of the published model."""
    given = (*QUICK, "--size", "24x16")
    pictures = [drawn(run("--model", files[n], *given)) for n in ("folder", "file")]
    assert pictures[0].shape == pictures[1].shape == (16, 24, 3)


def test_options_that_a_model_has_no_use_for_are_refused(run: Run, files: dict[str, Path]) -> None:
    picture, mask = files["picture"], files["mask"]
    for model, given, words in (
        ("larger", (), "draws from a picture"),
        ("fill", ("--init-img", picture), "--init-img and --mask"),
        ("larger", ("--init-img", picture, "--mask", mask), "does not take --mask"),
        ("larger", ("--init-img", picture, "--size", "64x64"), "size follows"),
        ("larger", ("--init-img", picture, "--class-label", 1), "--class-label"),
        ("folder", ("--init-img", picture), "does not take --init-img"),
    ):
        said = run("--model", files[model], *given, *QUICK)
        assert said.code != 0, given
        assert words in said.err, given
