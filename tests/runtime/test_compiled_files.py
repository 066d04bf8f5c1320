"""The folder of compiled networks: whole files of one's own or none, and not too many."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

from sfumato.errors import CheckpointError
from sfumato.runtime import compiled_files
from sfumato.runtime.compiled_files import CompiledFiles, default_folder

CONTENT = b"machine code " * 1000
posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners are those of POSIX")


@pytest.fixture
def files(tmp_path: Path) -> CompiledFiles:
    return CompiledFiles(tmp_path / "a" / "compiled")


def keep(files: CompiledFiles, key: str, content: bytes = CONTENT) -> Path:
    return files.keep(key, lambda path: path.write_bytes(content))


def names(files: CompiledFiles) -> list[str]:
    return sorted(path.name for path in files.folder.iterdir())


def test_what_is_kept_is_found_by_its_key_alone(files: CompiledFiles) -> None:
    assert files.is_empty() and files.find("aa") is None
    path = keep(files, "aa")
    assert files.find("aa") == path and path.read_bytes() == CONTENT
    assert files.find("a") is None and files.find("ab") is None
    assert CompiledFiles(files.folder).find("aa") == path and not files.is_empty()


@posix
def test_folder_and_files_are_for_their_owner_alone(files: CompiledFiles) -> None:
    path = keep(files, "aa")
    assert files.folder.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], b"M" + CONTENT[1:], CONTENT + b" "])
def test_a_damaged_file_is_not_used_and_goes(
    files: CompiledFiles, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = keep(files, "aa")
    path.write_bytes(damage)
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        assert files.find("aa") is None
    assert "is damaged" in caplog.text and not path.exists()


@posix
def test_what_others_may_write_is_not_used(
    files: CompiledFiles, caplog: pytest.LogCaptureFixture
) -> None:
    path = keep(files, "aa")
    path.chmod(0o620)
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        assert files.find("aa") is None
    assert "others may have written it" in caplog.text and path.exists()
    path.chmod(0o600)
    assert files.find("aa") == path
    files.folder.chmod(0o770)
    assert files.find("aa") is None and files.is_empty()
    with pytest.raises(CheckpointError, match=r"others may write there.*SFUMATO_CACHE"):
        keep(files, "bb")


@posix
def test_what_somebody_else_owns_is_not_used(
    files: CompiledFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = keep(files, "aa")
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    assert files.find("aa") is None
    with pytest.raises(CheckpointError, match="belongs to somebody else"):
        keep(files, "bb")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_linked_folder_is_what_it_leads_to_and_a_linked_file_is_none(
    files: CompiledFiles, tmp_path: Path
) -> None:
    path = keep(files, "aa")
    (tmp_path / "link").symlink_to(files.folder)
    assert CompiledFiles(tmp_path / "link").find("aa") == path
    moved = path.rename(tmp_path / path.name)
    path.symlink_to(moved)
    assert files.find("aa") is None


def test_a_full_disk_leaves_nothing_behind(files: CompiledFiles) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(CONTENT)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.keep("aa", fail)
    assert names(files) == [] and files.find("aa") is None


def test_a_file_in_the_folders_place_is_an_error_of_keeping_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    files = CompiledFiles(tmp_path / "file" / "compiled")
    assert files.is_empty() and files.find("aa") is None
    with pytest.raises(OSError, match="file"):
        keep(files, "aa")


def test_what_a_killed_process_was_writing_is_never_found_and_goes_after_a_day(
    files: CompiledFiles,
) -> None:
    class Killed(BaseException):
        pass

    begun: list[Path] = []

    def die(path: Path) -> None:
        path.write_bytes(CONTENT[:100])
        begun.append(path.rename(path.with_name(path.name.replace("aa", "lost"))))
        raise Killed

    with pytest.raises(Killed):
        files.keep("aa", die)
    assert files.is_empty() and files.find("aa") is None and begun[0].exists()
    keep(files, "bb")
    assert begun[0].exists(), "its process may live"
    os.utime(begun[0], times=(0, time.time() - 2 * compiled_files.ABANDONED))
    kept = keep(files, "cc")
    assert not begun[0].exists() and files.find("cc") == kept and files.find("bb") is not None


def test_a_new_file_takes_the_place_of_an_old_one_of_its_key(files: CompiledFiles) -> None:
    keep(files, "aa")
    new = keep(files, "aa", b"other code")
    assert names(files) == [new.name] and files.find("aa") == new


def test_what_was_not_used_for_longest_goes_first(
    files: CompiledFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_files, "MOST_FILES", 3)
    for age, key in enumerate(["cc", "bb", "aa"]):
        os.utime(keep(files, key), times=(1000 + age, 1000 + age))
    assert files.find("cc") is not None  # and so was used last
    keep(files, "dd")
    assert [name[:2] for name in names(files)] == ["aa", "cc", "dd"]
    monkeypatch.setattr(compiled_files, "MOST_BYTES", 2 * len(CONTENT))
    keep(files, "ee")
    assert [name[:2] for name in names(files)] in (["cc", "ee"], ["dd", "ee"])
    monkeypatch.setattr(compiled_files, "MOST_BYTES", 1)
    keep(files, "ff")
    assert [name[:2] for name in names(files)] == ["ff"], "the newest stays"


def test_another_process_may_remove_a_file_at_any_time(
    files: CompiledFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = keep(files, "aa")
    digest = compiled_files._digest

    def late(found: Path) -> str:
        answer = digest(found)
        path.unlink()
        return answer

    monkeypatch.setattr(compiled_files, "_digest", late)
    assert files.find("aa") is None


def test_the_environment_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "kept"))
    assert default_folder() == tmp_path / "kept" / "compiled"
    assert CompiledFiles().folder == (tmp_path / "kept" / "compiled").resolve()
    monkeypatch.delenv("SFUMATO_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "sfumato" / "compiled"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert default_folder() == tmp_path / ".cache" / "sfumato" / "compiled"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_folder() == tmp_path / "Library" / "Caches" / "sfumato" / "compiled"


def test_a_user_without_a_home_has_a_folder_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("SFUMATO_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    folder = default_folder()
    assert folder.name.startswith("sfumato-") and folder.parent == Path(tempfile.gettempdir())
