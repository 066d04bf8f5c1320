"""A reader sees the old content or the new, whatever happens to the writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sfumato.checkpoints.atomic import atomic_directory, atomic_path, write_file_atomically
from sfumato.checkpoints.jsonfile import read_json, write_json
from sfumato.errors import ConfigError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_file_atomically(path, "näive\n")
    assert path.read_bytes() == "näive\n".encode()
    write_file_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["a.txt"]


def test_a_written_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file_atomically(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sfumato.checkpoints.atomic.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file_atomically(path, b"new")
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_name_of_a_directory_or_in_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_file_atomically(tmp_path / "folder", b"")
    with pytest.raises(FileNotFoundError):
        write_file_atomically(tmp_path / "none" / "a", b"")
    assert names(tmp_path) == ["folder"]


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    name = "x" * 250
    write_file_atomically(tmp_path / name, b"1")
    assert names(tmp_path) == [name]


def test_a_new_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "model"
    with pytest.raises(RuntimeError), atomic_directory(target) as temporary:
        (temporary / "a").write_text("a")
        assert not target.exists()
        raise RuntimeError
    assert names(target.parent) == []
    with atomic_directory(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a").write_text("a")
    assert (target / "sub" / "a").read_text() == "a" and names(target.parent) == ["model"]


def test_an_existing_directory_keeps_its_other_files(tmp_path: Path) -> None:
    target = tmp_path / "model"
    (target / "sub").mkdir(parents=True)
    for name in ("README", "old", "sub/kept", "sub/a"):
        (target / name).write_text(name)
    seen: list[bool] = []

    def obsolete(new: Path, old: Path) -> list[Path]:
        seen.append((new / "sub" / "a").read_text() == "new" and old == target)
        return [old / "old"]

    with atomic_directory(target, obsolete=obsolete) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a").write_text("new")
        (temporary / "b").write_text("b")
    assert seen == [True]
    assert names(target) == ["README", "b", "sub"] and names(target / "sub") == ["a", "kept"]
    assert (target / "sub" / "a").read_text() == "new" and names(tmp_path) == ["model"]


def test_an_exception_leaves_an_existing_directory_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with (
        pytest.raises(RuntimeError),
        atomic_directory(tmp_path, obsolete=lambda _, old: old.iterdir()) as temporary,
    ):
        (temporary / "a").write_text("new")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_a_file_where_the_directory_should_be_is_an_error_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file")
    with pytest.raises(NotADirectoryError), atomic_directory(tmp_path / "model"):
        pytest.fail("the block must not run")


KILLED = """
import os, signal, sys
from sfumato.checkpoints import atomic

path, moment = sys.argv[1], sys.argv[2]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if moment != "after":
    setattr(atomic.os, moment, die)
atomic.write_file_atomically(path, b"new" * 1000)
die()
"""


@pytest.mark.parametrize("moment", ["fsync", "replace", "after"])
def test_a_killed_writer_leaves_the_old_file_or_the_new(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == (b"new" * 1000 if moment == "after" else b"old")
    left = [name for name in names(tmp_path) if name != "a.bin"]
    assert all(name.startswith(".") and name.endswith(".tmp") for name in left)


def test_json_is_written_sorted_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    values = {"b": [1, 2.5, None, True], "a": {"ü": "naïve 🍎"}}
    write_json(path, values)
    assert read_json(path) == values
    assert path.read_text().index('"a"') < path.read_text().index('"b"')


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, b"bytes"])
def test_what_json_cannot_hold_is_not_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(ConfigError, match=r"config\.json' cannot be written"):
        write_json(tmp_path / "config.json", {"a": value})
    assert names(tmp_path) == []
