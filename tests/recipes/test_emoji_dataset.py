"""The data set recipe end to end, on packages of two icons made here."""

from __future__ import annotations

import base64
import doctest
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import emoji_dataset
import numpy as np
import pytest
from emoji_dataset import NAMES, PACKAGES, Package, build, fetch, icon_svg, read_things
from emoji_words import STYLES
from PIL import Image

from sfumato.training.data import read_folder

pytest.importorskip("resvg_py")

RED_LEFT_HALF = '<path fill="#f00" d="M0 0h16v32H0z"/>'
ENTRIES = [
    {"label": "red apple", "hexcode": "1F34E", "group": 4, "subgroup": 40, "tags": ["fruit", "x2"]},
    {"label": "owl", "hexcode": "1F989", "group": 3, "subgroup": 35, "tags": ["bird", "wise"]},
    {"label": "flag: Italy", "hexcode": "1F1EE-1F1F9", "group": 9, "subgroup": 98},
]
CODES = {"1F34E": ["apple", "fruit"], "1F989": "fruit"}
GROUPS = {"3": "animals-nature", "4": "food-drink"}


def icon_set(*icons: str, **aliases: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: {"body": RED_LEFT_HALF} for name in icons}
    return {"icons": known, "aliases": aliases, "width": 32, "height": 32}


def write_tarball(path: Path, members: Mapping[str, Any]) -> str:
    """An npm tarball of JSON files; returns its SHA-512 in base64."""
    with tarfile.open(path, "w:gz") as archive:
        for name, value in members.items():
            content = json.dumps(value).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


@pytest.fixture
def tarballs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five small packages in the place of the real ones; only two sets draw the owl."""
    folder = tmp_path / "npm"
    folder.mkdir()
    packages = []
    for package in PACKAGES:
        icons = ["red-apple", "owl"] if "fluent" not in package.name else ["red-apple"]
        codepoints = {"1f34e": "red-apple", "1f989": "owl"}
        members: dict[str, Any] = {
            "icons.json": icon_set(*icons),
            "chars.json": {} if package.name == "@iconify-json/fluent-emoji" else codepoints,
        }
        if package.name == NAMES:
            members = {
                "en/data.json": ENTRIES,
                "en/shortcodes/emojibase.json": CODES,
                "meta/groups.json": {"groups": GROUPS},
            }
        digest = write_tarball(folder / package.filename, members)
        packages.append(replace(package, sha512=digest))
    monkeypatch.setattr(emoji_dataset, "PACKAGES", tuple(packages))
    return folder


def built(out: Path, tarballs: Path, seed: int = 0) -> list[dict[str, Any]]:
    build(out, tarballs, size=64, seed=seed, workers=1)
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def test_only_things_that_every_set_draws_are_written(tmp_path: Path, tarballs: Path) -> None:
    rows = built(tmp_path / "set", tarballs)
    assert [row["label"] for row in rows] == ["red apple"] * 4
    assert [row["style"] for row in rows] == [style.word for style in STYLES]
    assert [row["license"] for row in rows] == ["Apache-2.0", "MIT", "MIT", "CC-BY-4.0"]
    assert all(row["text"] == row["captions"][0] for row in rows)
    assert all(row["group"] == "food-drink" and row["hexcode"] == "1f34e" for row in rows)


def test_the_folder_is_one_that_training_reads(tmp_path: Path, tarballs: Path) -> None:
    rows = built(tmp_path / "set", tarballs)
    examples = read_folder(tmp_path / "set")
    assert [list(example.captions) for example in examples] == [row["captions"] for row in rows]


def test_pictures_are_drawn_on_white_with_the_margin_of_their_style(
    tmp_path: Path, tarballs: Path
) -> None:
    for row, style in zip(built(tmp_path / "set", tarballs), STYLES, strict=True):
        with Image.open(tmp_path / "set" / row["file_name"]) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")
            pixels = np.asarray(image)
        assert (pixels[:, -8:] == 255).all()
        assert tuple(pixels[32, 16]) == (255, 0, 0)
        margin = 64 * style.inset / (1 + 2 * style.inset)
        assert (pixels[: int(margin)] == 255).all()
        assert (pixels[int(np.ceil(margin)) + 1, 16] == (255, 0, 0)).all()


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, tarballs: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    built(first, tarballs)
    built(second, tarballs)
    files = sorted(path.relative_to(first) for path in first.rglob("*.*"))
    assert len(files) == 5
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_another_seed_gives_other_captions_of_the_same_things(
    tmp_path: Path, tarballs: Path
) -> None:
    rows = [built(tmp_path / str(seed), tarballs, seed) for seed in range(6)]
    assert len({json.dumps(row) for row in rows}) > 1
    assert len({tuple(entry["text"] for entry in row) for row in rows}) == 1


def test_a_tarball_with_other_content_is_refused(tmp_path: Path) -> None:
    package = Package("some-icons", "1.0.0", "AAAA")
    (tmp_path / package.filename).write_bytes(b"not what was pinned")
    with pytest.raises(SystemExit, match=r"some-icons 1\.0\.0.*SHA-512 differs"):
        fetch(package, tmp_path)


def test_without_npm_the_missing_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"some-icons-1\.0\.0\.tgz into .* --tarballs"):
        fetch(Package("some-icons", "1.0.0", "AAAA"), tmp_path)


def test_every_package_is_pinned_with_a_whole_digest() -> None:
    assert all(len(base64.b64decode(package.sha512)) == 64 for package in PACKAGES)
    assert {style.package for style in STYLES} < {package.name for package in PACKAGES}


def test_a_second_name_stays_only_when_no_other_thing_has_it() -> None:
    things = {thing.name: thing for thing in read_things(ENTRIES, CODES, GROUPS)}
    assert things.keys() == {"red apple", "owl"}
    assert things["red apple"].aliases == ("apple",)
    assert things["owl"].aliases == ()


def test_tags_with_digits_are_dropped() -> None:
    assert read_things(ENTRIES, CODES, GROUPS)[0].tags == ("fruit",)


@pytest.mark.parametrize(
    ("alias", "corner"),
    [({}, (2, 2)), ({"hFlip": True}, (29, 2)), ({"vFlip": True}, (2, 29))],
    ids=["as it is", "mirrored", "upside down"],
)
def test_an_alias_is_drawn_as_its_parent_turned_over(
    tmp_path: Path, alias: dict[str, bool], corner: tuple[int, int]
) -> None:
    data = icon_set(twin={"parent": "square", **alias})
    data["icons"]["square"] = {"body": '<path fill="#00f" d="M0 0h8v8H0z"/>'}
    svg = icon_svg(data, "twin")
    assert svg is not None
    emoji_dataset.draw((svg, tmp_path / "twin.png", 32))
    with Image.open(tmp_path / "twin.png") as image:
        corners = {xy: image.getpixel(xy) for xy in [(2, 2), (29, 2), (2, 29), (29, 29)]}
    assert [xy for xy, colour in corners.items() if colour == (0, 0, 255)] == [corner]


def test_an_unknown_icon_or_a_rotated_alias_has_no_svg() -> None:
    data = icon_set("square", turned={"parent": "square", "rotate": 1})
    assert icon_svg(data, "circle") is None
    assert icon_svg(data, "turned") is None


def test_a_margin_widens_the_view_on_all_sides() -> None:
    svg = icon_svg(icon_set("square"), "square", inset=0.125)
    assert svg is not None
    assert 'viewBox="-4 -4 40 40"' in svg


def test_sampled_prompts_cover_every_style_and_name_nothing_twice() -> None:
    labels = [f"thing {number}" for number in range(100)]
    prompts = emoji_dataset.sample_prompts(labels, 5, seed=1)
    assert prompts == emoji_dataset.sample_prompts(labels[::-1], 5, seed=1)
    assert prompts != emoji_dataset.sample_prompts(labels, 5, seed=2)
    assert len({prompt.split(",")[0] for prompt in prompts}) == 5 * len(STYLES)
    for style in STYLES:
        assert sum(prompt.endswith(f", {style.word} style") for prompt in prompts) == 5


def test_the_shipped_prompts_are_twelve_for_each_style() -> None:
    path = Path(__file__).parents[2] / "recipes" / "prompts-48.txt"
    styles = re.findall(r", (\w+) style$", path.read_text(), flags=re.MULTILINE)
    assert styles == [style.word for style in STYLES for _ in range(12)]


def test_the_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(emoji_dataset).failed == 0
