"""Pickles and archives that hide what they do: refused, or read as harmless notes; none runs.

The tricks are those of published advisories about scanners and loaders: picklescan
(CVE-2025-1716, -1889, -1944, -1945, -10155, -10156, -10157, -46417), torch.load (CVE-2025-32434,
CVE-2026-24747), and of "broken" pickles in renamed archives that were found on hubs.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato import StableDiffusionPipeline
from sfumato.checkpoints.inspection import FileInfo
from sfumato.checkpoints.pickle_machine import Name, Opaque, UnusualKey
from sfumato.checkpoints.torch_rebuild import Storage
from sfumato.errors import CheckpointError
from tests.faults import hostile_names as names
from tests.faults import hostile_pickles as corpus
from tests.faults.hostile_files import in_torch_zip, torch_bytes, within
from tests.faults.hostile_tricks import tricks
from tests.faults.reading import CONTAINERS, SOUND, archive, refused, refused_or_harmless

PLAIN = (str, bytes, int, float, type(None), torch.Tensor, Name, Storage, FileInfo)


def assert_plain(value: Any, seen: set[int] | None = None) -> None:
    """The value holds data alone: nothing that was looked up, made by a call, or can be called."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        for key, item in value.items():
            assert_plain(key.value if isinstance(key, UnusualKey) else key, seen)
            assert_plain(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            assert_plain(item, seen)
    elif isinstance(value, Opaque):
        parts = value.name, value.arguments, value.state, value.items, value.elements
        assert_plain(parts, seen)
    else:
        assert isinstance(value, PLAIN) or hasattr(value, "tensors"), type(value)
        assert not callable(value)


@pytest.mark.parametrize("trick", tricks(""))
def test_no_trick_runs_anything(tmp_path: Path, canary: Path, trick: str) -> None:
    body = tricks(f"touch {canary}")[trick]
    for container in CONTAINERS.values():
        for whole in (corpus.proto(body), corpus.result(body)):
            assert_plain(refused_or_harmless(tmp_path / "m.ckpt", container(whole)))
            assert not canary.exists()


#: Tricks that run the command as soon as Python itself loads them.
LIVE = (
    "partial that is called", "memo that is written twice", "memo that is counted",
    "memo that is far away", "memo by text", "protocol in the middle", "storage made by a call",
    "call of a call", "hooks of a tensor", "state of a storage",
)  # fmt: skip


class _Careless(pickle.Unpickler):
    """As `torch.load` without ``weights_only``: it takes references out of the pickle."""

    def persistent_load(self, reference: Any) -> Any:
        return torch.UntypedStorage(0)


@pytest.mark.parametrize("trick", LIVE)
def test_the_tricks_are_live_ammunition(tmp_path: Path, trick: str) -> None:
    canary = tmp_path / "canary"
    body = tricks(f"touch {canary}")[trick]
    with suppress(Exception):
        _Careless(io.BytesIO(corpus.result(body))).load()
    assert canary.exists()


def test_what_strangers_define_is_noted_and_not_imported(tmp_path: Path, canary: Path) -> None:
    path, before = tmp_path / "m.ckpt", set(sys.modules)
    for name in names.STRANGERS:
        for spelled in (corpus.global_name, corpus.stack_global, corpus.split_global):
            body = corpus.call(name, f"touch {canary}", spelled(name))
            table = b"}" + corpus.text("epoch") + b"K\x03s" + corpus.text("it") + body + b"s"
            results = refused_or_harmless(path, in_torch_zip(corpus.result(table)))
            assert_plain(results)
            assert results[0]["epoch"] == 3 and isinstance(results[0]["it"], Opaque), name
    assert set(sys.modules) == before


# What a file is called, and what it is


@pytest.mark.parametrize(
    "name", ["m.ckpt", "m.pkl", "m.p", "m.config", "m.txt", "m.png", "m", "m.safetensors", "m.7z"]
)
def test_the_name_of_a_file_decides_nothing(tmp_path: Path, canary: Path, name: str) -> None:
    """CVE-2025-1889 and -10155: scanners looked at the ending, or trusted it."""
    evil = corpus.proto(corpus.call("os.system", f"touch {canary}"))
    for container in CONTAINERS.values():
        message = refused(tmp_path / name, container(evil))
        assert "refused: it holds more than numbers (it asks for `os.system`)" in message


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"7z\xbc\xaf\x27\x1c\x00\x04", "7-Zip"),
        (b"Rar!\x1a\x07\x01\x00", "RAR"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"BZh91AY&SY", "bzip2"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"\x28\xb5\x2f\xfd\x24", "Zstandard"),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x7fELF\x02\x01", "program"),
        (b"MZ\x90\x00\x03", "program"),
        (b"#!/bin/sh\ntouch x", "script"),
    ],
)
def test_other_archives_and_programs_are_named(tmp_path: Path, start: bytes, words: str) -> None:
    """Renamed 7-Zip archives passed scanners that knew zip alone (nullifAI)."""
    assert words in refused(tmp_path / "m.ckpt", start + bytes(600))
    path = tmp_path / "m.safetensors"
    path.write_bytes(start + bytes(600))
    with pytest.raises(CheckpointError, match=words):
        StableDiffusionPipeline.from_single_file(path)


@pytest.mark.parametrize("end", [b"\xff.", b"", b"0\x80\x63N.", b"((", b"X\xff\xff\xff\xff", b"R"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_pickle_is_refused_for_its_call_even_where_it_breaks_later(
    tmp_path: Path, canary: Path, container: str, end: bytes
) -> None:
    """Python runs a pickle as it reads: what comes before the break has happened by then."""
    body = b"\x80\x04" + corpus.call("os.system", f"touch {canary}") + end
    assert "os.system" in refused(tmp_path / "m.ckpt", CONTAINERS[container](body))


def test_a_tar_archive_of_the_oldest_torch_is_refused(tmp_path: Path, canary: Path) -> None:
    """CVE-2025-32434: this layout ran code even with ``weights_only``."""
    evil = corpus.proto(corpus.call("os.system", f"touch {canary}"))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("sys_info", "pickle", "storages", "tensors", "../outside"):
            info = tarfile.TarInfo(name)
            info.size = len(evil)
            tar.addfile(info, io.BytesIO(evil))
    assert "tar archive" in refused(tmp_path / "m.pt", buffer.getvalue())
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


# Archives that two readers read in two ways


def _archive() -> bytes:
    return archive(SOUND)


def _evil(command: str) -> bytes:
    return in_torch_zip(corpus.proto(corpus.call("os.system", command)))


def _changed(data: bytes, start: bytes, offset: int, form: str, value: int) -> bytes:
    """The archive with a number changed in its first record that begins so."""
    place = data.find(start) + offset
    return data[:place] + struct.pack(form, value) + data[place + struct.calcsize(form) :]


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


@pytest.mark.parametrize("hidden", ["sound", "hostile"])
def test_two_archives_in_one_file_are_refused(tmp_path: Path, canary: Path, hidden: str) -> None:
    """Whichever a scanner reads, a loader may read the other."""
    other = _evil(f"touch {canary}") if hidden == "hostile" else _archive()
    sound = torch_bytes({"a": torch.zeros(2)})
    with_comment = io.BytesIO(sound)
    with zipfile.ZipFile(with_comment, "a") as file:
        file.comment = other
    for data in (other + sound, sound + other, with_comment.getvalue()):
        refused(tmp_path / "m.ckpt", data)


def test_a_member_with_two_names_is_refused(tmp_path: Path) -> None:
    """CVE-2025-1944: the name before the data differs from the one in the directory."""
    data = _archive()
    place = data.find(b"archive/data.pkl")
    data = data[:place] + b"archive/dota.pkl" + data[place + 16 :]
    assert "two names" in refused(tmp_path / "m.ckpt", data)


@pytest.mark.parametrize("start", [LOCAL, CENTRAL])
def test_flags_that_stop_a_scanner_do_not_help(tmp_path: Path, canary: Path, start: bytes) -> None:
    """CVE-2025-1945: a member that claims to be encrypted was passed over."""
    offset = 6 if start == LOCAL else 8
    evil = _changed(_evil(f"touch {canary}"), start, offset, "<H", 1)
    message = refused(tmp_path / "m.ckpt", evil)
    assert "encrypted" in message or "os.system" in message


@pytest.mark.parametrize(
    ("start", "offset", "form", "value"),
    [
        (LOCAL, 14, "<I", 0xBADBAD),  # CVE-2025-10156: a wrong checksum
        (CENTRAL, 16, "<I", 0xBADBAD),
        (LOCAL, 4, "<H", 0xFFFF),  # the version that is needed
        (CENTRAL, 6, "<H", 0xFFFF),
        (LOCAL, 8, "<H", 8),  # compressed, says one of the two
        (CENTRAL, 10, "<H", 8),
        (LOCAL, 18, "<I", 3),  # other sizes
        (CENTRAL, 20, "<I", 3),
        (CENTRAL, 24, "<I", 3),
        (CENTRAL, 34, "<H", 1),  # another disk
        (END, 4, "<H", 1),
        (END, 8, "<H", 1),  # fewer members
        (END, 12, "<I", 3),
        (END, 16, "<I", 3),
    ],
)
def test_a_hostile_archive_with_a_wrong_field_is_refused_all_the_same(
    tmp_path: Path, canary: Path, start: bytes, offset: int, form: str, value: int
) -> None:
    refused(tmp_path / "m.ckpt", _changed(_evil(f"touch {canary}"), start, offset, form, value))


@pytest.mark.parametrize(
    "name",
    ["archive/Data.pkl", "archive//data.pkl", "archive/data.pkl/", "archive/data.pkl\0.txt",
     "archive\\data.pkl", "/data.pkl", "./data.pkl", "archive/./data.pkl"],
)  # fmt: skip
def test_the_pickle_is_found_under_its_name_alone(tmp_path: Path, canary: Path, name: str) -> None:
    evil = corpus.proto(corpus.call("os.system", f"touch {canary}"))
    refused(tmp_path / "m.ckpt", archive([(name, evil), SOUND[1]]))


def test_a_second_pickle_that_nobody_reads_runs_nothing(tmp_path: Path, canary: Path) -> None:
    evil = corpus.proto(corpus.call("os.system", f"touch {canary}"))
    members = [
        *SOUND,
        ("archive/evil.pkl", evil),
        ("archive/data/0", evil),
        ("archive/code/x", evil),
    ]
    assert_plain(refused_or_harmless(tmp_path / "m.ckpt", archive(members)))


def test_the_corpus_is_large() -> None:
    called = {*names.SHELL, *names.PYTHON, *names.FILES, *names.STRANGERS}
    ways: list[dict[str, bytes]] = [corpus.calls(""), tricks(""), corpus.bombs()]
    assert len(called) > 450 and sum(map(len, ways)) > 100


@pytest.mark.parametrize("build", [corpus.calls, tricks])
def test_no_trick_takes_long(
    tmp_path: Path, build: Callable[[str], dict[str, bytes]], canary: Path
) -> None:
    """A thousand times the same, one behind the other."""
    for body in build(f"touch {canary}").values():
        with within():
            refused_or_harmless(tmp_path / "m.ckpt", in_torch_zip(b"\x80\x04" + body * 1000))
