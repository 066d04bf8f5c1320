"""The command with pictures to begin from, to draw into and to go by; two passes; tiling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.checkpoints.metadata import parse_infotext, to_infotext
from sfumato.checkpoints.picture_files import read_recipe
from sfumato.cli.picture_options import HIRES_UPSCALERS, read_edges
from sfumato.errors import InputError
from sfumato.pipelines.hires import UPSCALERS
from tests.command import Run, Said
from tests.pipelines.tiny import tiny_controlnet

QUICK = ("--steps", 3, "--seed", 5)


def _pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _drawn(said: Said) -> str:
    assert said.code == 0, said.err
    return said.out.strip()


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Path]:
    """A picture of 32 x 24, a mask of its left half, and a ControlNet."""
    pixels = (np.random.default_rng(0).random((24, 32, 3)) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    mask = Image.new("L", (32, 24))
    mask.paste(255, (0, 0, 16, 24))
    mask.save(tmp_path / "mask.png")
    tiny_controlnet().save_pretrained(tmp_path / "net")
    return {name: tmp_path / name for name in ("picture.png", "mask.png", "net")}


def test_a_picture_is_changed_recorded_and_drawn_again(
    run: Run, embedded: Path, given: dict[str, Path]
) -> None:
    path = _drawn(run("a cat", "-i", given["picture.png"], "--strength", 0.7, *QUICK))
    recipe: Any = read_recipe(path)
    assert (recipe.width, recipe.height) == (32, 24)
    assert recipe.strength == 0.7
    assert recipe.init_image == str(given["picture.png"])
    assert parse_infotext(to_infotext(recipe)).strength == 0.7
    again = _drawn(run("--from", path))
    assert (_pixels(again) == _pixels(path)).all()
    weaker = _drawn(run("--from", path, "--strength", 0.4))
    assert (_pixels(weaker) != _pixels(path)).any()
    smaller = _drawn(run("a cat", "-i", given["picture.png"], "--size", "16x16", *QUICK))
    assert _pixels(smaller).shape == (16, 16, 3)


def test_what_a_mask_leaves_black_is_kept_to_the_pixel(
    run: Run, embedded: Path, given: dict[str, Path]
) -> None:
    path = _drawn(
        run("a cat", "--init-img", given["picture.png"], "--mask", given["mask.png"], *QUICK)
    )
    before, after = _pixels(given["picture.png"]), _pixels(path)
    assert (after[:, 16:] == before[:, 16:]).all()
    assert (after[:, :16] != before[:, :16]).any()
    assert (_pixels(_drawn(run("--from", path))) == after).all()


def test_a_picture_grows(run: Run, embedded: Path, given: dict[str, Path]) -> None:
    call = ("a cat", "-i", given["picture.png"], "--outpaint", "8,0,16,8", *QUICK)
    path = _drawn(run(*call))
    drawn = _pixels(path)
    assert drawn.shape == (32, 56, 3)
    assert (drawn[:24, 8:40] == _pixels(given["picture.png"])).all()
    assert (_pixels(_drawn(run("--from", path))) == drawn).all()


def test_two_passes_end_at_the_size_asked_for(run: Run, embedded: Path) -> None:
    call = ("a cat", "--size", "32x48", "--hires", 2, "--hires-upscaler", "lanczos", *QUICK)
    path = _drawn(run(*call, "--strength", 0.5))
    recipe: Any = read_recipe(path)
    assert _pixels(path).shape == (48, 32, 3)
    assert (recipe.hires_scale, recipe.hires_upscaler, recipe.strength) == (2, "lanczos", 0.5)
    assert "Hires upscale: 2" in to_infotext(recipe)
    assert (_pixels(_drawn(run("--from", path))) == _pixels(path)).all()


def test_edges_join_when_asked(run: Run, embedded: Path) -> None:
    plain = _drawn(run("a cat", *QUICK))
    tiled = _drawn(run("a cat", "--tiling", "both", *QUICK))
    assert (_pixels(plain) != _pixels(tiled)).any()
    assert "Tiling: True" in to_infotext(read_recipe(tiled))  # type: ignore[arg-type]
    assert (_pixels(_drawn(run("--from", tiled))) == _pixels(tiled)).all()


@pytest.mark.parametrize(
    "more", [(), ("-i", "picture.png"), ("-i", "picture.png", "--mask", "mask.png")]
)
def test_a_controlnet_is_felt(
    run: Run, embedded: Path, given: dict[str, Path], more: tuple[str, ...]
) -> None:
    words = [given.get(word, word) for word in more]
    call = ("a cat", "--size", "32x24", *words, *QUICK)
    control = ("--controlnet", given["net"], "--control-image", given["picture.png"])
    free = _drawn(run(*call))
    under = _drawn(run(*call, *control))
    assert (_pixels(free) != _pixels(under)).any()
    same = _drawn(run(*call, *control, "--control-strength", 0))
    assert (_pixels(free) == _pixels(same)).all()
    assert (_pixels(_drawn(run("--from", under))) == _pixels(under)).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mask", "x.png"), "No such picture"),
        (("-i", "nowhere.png"), "No such picture"),
        (("--strength", 0.5), "needs a picture"),
        (("--outpaint", "64"), "needs a picture"),
        (("--outpaint", "63"), "multiples of 8"),
        (("--hires-upscaler", "magic"), "one of latent"),
        (("--tiling", "z"), "one of both"),
        (("--controlnet", "net"), "belong together"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    run: Run, embedded: Path, words: tuple[Any, ...], message: str
) -> None:
    said = run("a cat", *words, *QUICK)
    assert said.code != 0
    assert message in said.err
    assert not said.out


def test_a_file_that_is_no_picture_is_refused(run: Run, embedded: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    said = run("a cat", "-i", tmp_path / "text.png", *QUICK)
    assert said.code != 0
    assert "no picture that can be read" in said.err


def test_edges_are_one_number_or_four() -> None:
    assert read_edges("64") == (64, 64, 64, 64)
    assert read_edges("0, 8,16,24") == (0, 8, 16, 24)
    for wrong in ("", "8,8", "0", "-8", "8,8,8,x", "99999"):
        with pytest.raises(InputError):
            read_edges(wrong)


def test_the_command_names_every_way_to_enlarge() -> None:
    assert HIRES_UPSCALERS == UPSCALERS
