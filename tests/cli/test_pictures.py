"""Names for pictures: nothing is overwritten, nothing is half there."""

from __future__ import annotations

import errno
import os
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from sfumato.cli import pictures
from sfumato.cli.pictures import candidates, check_output, suffix_of, write_new
from sfumato.errors import InputError


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names(output: str | None, count: int = 3) -> list[str]:
    return [str(write_new(output, 7, b"x")) for _ in range(count)]


def test_without_a_wish_pictures_are_numbered_in_a_folder_of_the_day() -> None:
    first, second = names(None, 2)
    assert re.fullmatch(r"outputs/\d{4}-\d\d-\d\d/00000-7\.png", first)
    assert second == first.replace("00000", "00001")


def test_a_folder_is_numbered_on_from_its_highest_number() -> None:
    Path("folder").mkdir()
    Path("folder/00041-99.png").touch()
    Path("folder/notes.txt").touch()
    assert names("folder") == [f"folder/000{n}-7.png" for n in (42, 43, 44)]
    assert names("new/", 1) == ["new/00000-7.png"]
    assert names("other", 1) == ["other/00000-7.png"]


def test_a_name_that_is_taken_gets_a_number() -> None:
    assert names("apple.png") == ["apple.png", "apple_2.png", "apple_3.png"]
    assert names("a/b/c.PNG", 2) == ["a/b/c.PNG", "a/b/c_2.PNG"]


@pytest.mark.parametrize("name", ["a.jpg", "b/c.JPEG", "a-%03d.webp", "{seed}.webp", "a.png"])
def test_the_ending_says_what_is_written(name: str) -> None:
    check_output(name)
    assert Path(names(name, 1)[0]).suffix == suffix_of(name) == Path(name).suffix
    assert suffix_of("folder/") == suffix_of(None) == ".png"


def test_a_pattern_counts_from_the_next_free_number() -> None:
    assert names("apple-%03d.png", 2) == ["apple-000.png", "apple-001.png"]
    Path("apple-017.png").touch()
    assert names("apple-%03d.png", 1) == ["apple-018.png"]
    assert names("d/%d.png", 2) == ["d/0.png", "d/1.png"]


def test_the_seed_stands_in_names_and_folders() -> None:
    assert names("seed-{seed}.png", 2) == ["seed-7.png", "seed-7_2.png"]
    assert names("{seed}/%02d-{seed}.png", 1) == ["7/00-7.png"]


@pytest.mark.parametrize("name", ["%s.png", "%n.png", "{0}.png", "{seed.real}.png", "$(x).png"])
def test_other_patterns_are_plain_text(name: str) -> None:
    assert names(name, 1) == [name]


def test_many_processes_at_once_never_share_a_name() -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda n: write_new("p-%03d.png", n, str(n).encode()), range(40)))
    assert len(set(paths)) == 40
    assert sorted(int(path.read_bytes()) for path in paths) == list(range(40))


def test_a_file_system_without_links_overwrites_nothing_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert names("apple.png", 2) == ["apple.png", "apple_2.png"]
    assert sorted(os.listdir()) == ["apple.png", "apple_2.png"]


def test_a_full_disk_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pictures, "fsync_path", full)
    with pytest.raises(OSError, match="No space"):
        write_new("apple.png", 7, b"x" * 1000)
    assert os.listdir() == []


@pytest.mark.parametrize(
    "output", ["a.gif", "folder/a.jxl", "apple.png.txt", "", "  ", "a\0.png", "\ud800.png"]
)
def test_a_name_that_cannot_be_is_refused_before_drawing(output: str) -> None:
    with pytest.raises(InputError):
        check_output(output)


def test_a_place_that_takes_no_pictures_is_refused_before_drawing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("file").touch()
    with pytest.raises(NotADirectoryError):
        check_output("file/a.png")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError):
        check_output("new/a.png")


def test_checking_a_place_creates_nothing() -> None:
    for output in (None, "a/b/c.png", "d/"):
        check_output(output)
    assert os.listdir() == []


def test_candidates_never_end() -> None:
    for output in (None, "a.png", "a%d.png", "a/"):
        assert len(set(islice(candidates(output, 1), 50))) == 50
