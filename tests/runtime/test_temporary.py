"""Where temporary files go: where the user says, or to a disk if there is one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from sfumato.runtime import temporary

MOUNTED = """\
/dev/vda / ext4 rw,relatime 0 0
tmpfs {memory} tmpfs rw 0 0
/dev/vdb {disk} xfs rw 0 0
"""


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """A folder in memory, with a space in its name, and one on a disk mounted below it."""
    memory, disk = tmp_path / "in memory", tmp_path / "in memory" / "disk"
    disk.mkdir(parents=True)
    table = tmp_path / "mounts"
    names = {"memory": str(memory).replace(" ", "\\040"), "disk": str(disk).replace(" ", "\\040")}
    table.write_text(MOUNTED.format(**names))
    monkeypatch.setattr(temporary, "MOUNTS", table)
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    return memory, disk


def test_a_folder_in_memory_gives_way_to_one_on_a_disk(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, disk = places
    monkeypatch.setattr(temporary, "_LARGE_FILES", str(disk))
    monkeypatch.setattr(tempfile, "tempdir", str(memory / "sub"))
    assert temporary.folder() == str(disk)
    monkeypatch.setattr(tempfile, "tempdir", str(disk / "sub"))
    assert temporary.folder() == str(disk / "sub")


def test_the_user_says_where(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    memory, disk = places
    monkeypatch.setattr(temporary, "_LARGE_FILES", str(disk))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(memory))
    assert temporary.folder() == str(memory)


@pytest.mark.parametrize("other", ["none", "in memory/sub"])
def test_a_folder_in_memory_is_better_than_none(
    other: str, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, _ = places
    (memory / "sub").mkdir()
    monkeypatch.setattr(temporary, "_LARGE_FILES", str(memory.parent / other))
    monkeypatch.setattr(tempfile, "tempdir", str(memory))
    assert temporary.folder() == str(memory)


def test_without_a_table_of_mounts_the_usual_folder_is_taken(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, disk = places
    monkeypatch.setattr(temporary, "_LARGE_FILES", str(disk))
    monkeypatch.setattr(temporary, "MOUNTS", memory / "none")
    monkeypatch.setattr(tempfile, "tempdir", str(memory))
    assert temporary.folder() == str(memory)


def test_some_room_is_left_on_the_disk(tmp_path: Path) -> None:
    assert not temporary.has_room(str(tmp_path), 2**60)
    with pytest.raises(OSError):
        temporary.has_room(str(tmp_path / "none"), 1)
