"""Hostile checkpoints in one file: nothing runs, nothing hangs, and the message says why."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from sfumato.checkpoints.inspection import inspect_file
from sfumato.checkpoints.pickles import read_pickle, read_pickled
from sfumato.errors import CheckpointError
from tests.faults import hostile_names as names
from tests.faults import hostile_pickles as corpus
from tests.faults.hostile_files import (
    in_torch_zip,
    torch_bytes,
    within,
)
from tests.faults.reading import CONTAINERS, SOUND, archive, nothing_runs, refused

# Names


@pytest.mark.parametrize("container", CONTAINERS)
def test_no_name_of_the_corpus_is_called_or_looked_up(
    tmp_path: Path, canary: Path, container: str
) -> None:
    wrap = CONTAINERS[container]
    path = tmp_path / "m.ckpt"
    spellings = [corpus.global_name, corpus.stack_global, corpus.split_global]
    arguments = {
        f"touch {canary}": names.SHELL,
        f"open({str(canary)!r}, 'w').close()": names.PYTHON,
        str(canary): names.FILES,
    }
    for argument, called in arguments.items():
        for name in called:
            for spelled in spellings if container == "zip" else spellings[:1]:
                body = corpus.call(name, argument, spelled(name))
                message = refused(path, wrap(corpus.proto(body)))
                assert "refused: it holds more than numbers" in message, name
    assert len(names.SHELL + names.PYTHON + names.FILES) > 200


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("way", corpus.calls(""))
def test_no_way_of_calling_calls(tmp_path: Path, canary: Path, container: str, way: str) -> None:
    body = corpus.calls(f"touch {canary}")[way]
    for whole in (corpus.proto(body), corpus.result(body)):
        refused(tmp_path / "m.ckpt", CONTAINERS[container](whole))


def test_the_corpus_is_live_ammunition(tmp_path: Path) -> None:
    live = (
        "reduce", "object", "instance", "name from the stack", "name from the memo",
        "name from a duplicate", "result thrown away",
    )  # fmt: skip
    for way in live:
        path = tmp_path / way.replace(" ", "-")
        with suppress(Exception):
            pickle.loads(corpus.proto(corpus.calls(f"touch {path}")[way]))
        assert path.exists(), way


def test_the_extension_registry_of_the_process_is_not_asked(tmp_path: Path, canary: Path) -> None:
    import copyreg
    import os

    copyreg.add_extension("os", "system", 113)
    try:
        for cached in (False, True):
            if cached:
                copyreg._extension_cache[113] = os.system  # type: ignore[attr-defined]
            body = b"\x82\x71" + corpus.text(f"touch {canary}") + b"\x85R"
            refused(tmp_path / "m.ckpt", in_torch_zip(corpus.proto(body)))
    finally:
        copyreg._extension_cache.pop(113, None)  # type: ignore[attr-defined]
        copyreg.remove_extension("os", "system", 113)


class Payload:
    """Runs a program when it is unpickled by Python."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.canary}",)


def test_a_call_is_found_wherever_it_hides_among_sound_weights(
    tmp_path: Path, canary: Path
) -> None:
    evil, weights = Payload(canary), {"a": torch.zeros(3)}
    hooked = torch.zeros(2)
    hooked.evil = evil  # type: ignore[attr-defined]
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.evil = evil  # type: ignore[attr-defined]
    contents: dict[str, Any] = {
        "a value": {**weights, "b": evil},
        "a list": {**weights, "b": [[evil]]},
        "a tuple": {**weights, "b": (1, evil)},
        "beside the table": {"state_dict": weights, "callbacks": {"x": evil}},
        "attribute of a tensor": {**weights, "b": hooked},
        "attribute of a parameter": {**weights, "b": parameter},
        "alone": evil,
    }
    for label, content in contents.items():
        for legacy in (False, True):
            data = torch_bytes(content, _use_new_zipfile_serialization=not legacy)
            assert "`posix.system`" in refused(tmp_path / "m.ckpt", data), label
            with pytest.raises(CheckpointError, match="refused"):
                StableDiffusionPipeline.from_single_file(tmp_path / "m.ckpt")


@pytest.mark.parametrize("read", [read_pickle, inspect_file, AutoencoderKL.from_single_file,
                                  UNet2DConditionModel.from_single_file,
                                  StableDiffusionPipeline.from_single_file])  # fmt: skip
def test_every_way_in_refuses(tmp_path: Path, canary: Path, read: Callable[[Path], Any]) -> None:
    for name in ("m.ckpt", "m.pt", "m.bin", "m.safetensors"):
        path = tmp_path / name
        path.write_bytes(in_torch_zip(corpus.proto(corpus.call("os.system", f"touch {canary}"))))
        with pytest.raises(CheckpointError, match=r"os\.system"):
            read(path)


# Classes of training programs, which are harmless and stay unknown


def test_classes_of_other_programs_are_not_imported_even_when_they_could_be(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"open({str(canary)!r}, 'w').close()\nclass Callback:\n  def __init__(*a): {{}}[0]\n"
    (tmp_path / "my_training.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    table = pickle.dumps({"epoch": 3}, 2)[2:-1]
    state = b"}" + corpus.text("x") + b"K\x01s"
    bodies = [
        corpus.call("my_training.Callback", "x"),
        corpus.global_name("my_training.Callback") + b")\x81" + state + b"b",
        corpus.stack_global("my_training.Callback") + b")R" + state + b"b",
        b"(imy_training\nCallback\n" + state + b"b",
        corpus.global_name("my_training.Callback"),
        corpus.global_name("my_training.Callback") + b")R" + corpus.text("k") + b"K\x01s",
        corpus.global_name("my_training.Callback") + b")R" + b"(K\x01K\x02e",
        corpus.global_name("builtins.getattr") + corpus.global_name("my_training.Stage")
        + corpus.text("FIT") + b"\x86R",
    ]  # fmt: skip
    path = tmp_path / "m.ckpt"
    for body in bodies:
        whole = b"\x80\x02" + body + b"0" + table + b"."
        path.write_bytes(in_torch_zip(whole))
        with within(), nothing_runs():
            assert read_pickled(path) == {"epoch": 3}
    assert "my_training" not in sys.modules


# Files that are no torch checkpoints, or not only


def test_more_pickles_behind_the_first_are_refused(tmp_path: Path, canary: Path) -> None:
    evil = corpus.proto(corpus.call("os.system", f"touch {canary}"))
    path = tmp_path / "m.ckpt"
    assert "behind its end" in refused(path, in_torch_zip(corpus.sound_table() + evil))
    refused(path, corpus.sound_table() + evil)
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=False)
    path.write_bytes(buffer.getvalue() + evil)  # behind the numbers, where nobody looks
    with nothing_runs():
        assert list(read_pickle(path)) == ["a"]


def test_a_pickle_that_breaks_after_its_payload_is_refused(tmp_path: Path, canary: Path) -> None:
    body = corpus.call("os.system", f"touch {canary}")
    for end in (b"\xff.", b"", b"0\x80\x63N.", b"((", b"\x95\xff.", b"X\xff\xff\xff\xff"):
        for container in CONTAINERS.values():
            refused(tmp_path / "m.ckpt", container(b"\x80\x04" + body + end))


@pytest.mark.parametrize("bomb", corpus.bombs())
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_bombs_cost_neither_time_nor_memory(tmp_path: Path, bomb: str, container: str) -> None:
    path = tmp_path / "m.ckpt"
    path.write_bytes(CONTAINERS[container](corpus.proto(corpus.bombs()[bomb])))
    for read in (read_pickle, read_pickled):
        with within():
            try:
                read(path)
            except CheckpointError as error:
                assert len(str(error)) < 1000


def test_a_table_that_contains_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": torch.zeros(2)}
    content["again"] = content
    path = tmp_path / "m.ckpt"
    path.write_bytes(torch_bytes(content))
    assert list(read_pickle(path)) == ["a"]
    with within(), pytest.raises(CheckpointError, match="nested too deeply"):
        read_pickled(path)
    path.write_bytes(torch_bytes({"state_dict": content}))
    assert list(read_pickle(path)) == ["a"]


# Archives


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([*SOUND, ("other/data.pkl", b"N.")], "one `data.pkl`"),
        ([*SOUND, ("archive/data.pkl", b"N.")], "two members of the same name"),
        ([("archive/deep/data.pkl", b"N.")], "one `data.pkl`"),
        ([("data.pkl", b"N.")], "one `data.pkl`"),
        ([*SOUND, ("archive/constants.pkl", b"N.")], "TorchScript"),
        ([SOUND[0], ("archive/byteorder", b"big")], "another kind of machine"),
        ([SOUND[0], ("archive/byteorder", b"x" * 50)], "absurdly large"),
        ([*SOUND, ("archive/../../x", b"")], "points outside"),
        ([*SOUND, ("/etc/x", b"")], "points outside"),
        ([*SOUND, ("C:\\x", b"")], "points outside"),
    ],
)
def test_archives_that_torch_never_writes_are_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], words: str
) -> None:
    assert words in refused(tmp_path / "m.ckpt", archive(members))
    assert [p.name for p in tmp_path.iterdir()] == ["m.ckpt"]


def test_archives_with_a_wrong_checksum_run_nothing(tmp_path: Path, canary: Path) -> None:
    evil = corpus.proto(corpus.call("os.system", f"touch {canary}"))
    data = bytearray(in_torch_zip(evil))
    checksum = struct.pack("<I", zlib.crc32(evil))
    assert data.count(checksum) == 2, "before the member and in the directory"
    data = data.replace(checksum, b"\1\2\3\4")
    assert "os.system" in refused(tmp_path / "m.ckpt", bytes(data))


def damaged_archives() -> dict[str, bytes]:
    """Sound archives of one tensor with one field changed."""
    sound = torch_bytes({"a": torch.arange(6.0)})
    central = sound.find(b"PK\x01\x02")
    last = sound.rfind(b"PK\x05\x06")

    def put(position: int, form: str, value: int) -> bytes:
        return (
            sound[:position] + struct.pack(form, value) + sound[position + struct.calcsize(form) :]
        )

    return {
        "a member that begins behind the end": put(central + 42, "<I", 2**31),
        "a member that begins elsewhere": put(central + 42, "<I", 7),
        "a member with a huge size": put(central + 24, "<I", 2**31),
        "a member with two sizes": put(central + 20, "<I", 3),
        "a directory of huge size": put(last + 12, "<I", 2**31),
        "a directory that begins elsewhere": put(last + 16, "<I", 2**31),
        "many members promised": put(last + 10, "<H", 60_000),
        "a name of great length": put(central + 28, "<H", 65_000),
        "an unknown compression": put(central + 10, "<H", 99),
        "cut in the middle": sound[: len(sound) // 2],
        "nothing but an end": sound[last:],
    }


@pytest.mark.parametrize("what", damaged_archives())
def test_damaged_archives_are_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "m.ckpt"
    path.write_bytes(damaged_archives()[what])
    with within(), nothing_runs():
        try:
            loaded = read_pickle(path)
        except CheckpointError:
            return
    assert torch.equal(loaded["a"], torch.arange(6.0)), "then the damage was of no consequence"


# Tensors


def rebuilt(arguments: bytes, storage: bytes | None = None) -> bytes:
    """A file with a tensor that is rebuilt with these arguments after the storage."""
    kind = b"ctorch\nFloatStorage\n"
    pid = b"(" + corpus.text("storage") + kind + corpus.text("0") + corpus.text("cpu") + b"K\x06tQ"
    body = b"}" + corpus.text("a") + corpus.global_name("torch._utils._rebuild_tensor_v2") + b"("
    body += (pid if storage is None else storage) + arguments + b"tRs"
    members = [("archive/data.pkl", b"\x80\x02" + body + b"."), ("archive/data/0", bytes(24))]
    return archive(members)


NOTHING = b"\x89" + corpus.global_name("collections.OrderedDict") + b")R"


@pytest.mark.parametrize(
    "arguments",
    [
        b"K\x07" + b"K\x01\x85K\x01\x85" + NOTHING,  # begins behind the end
        b"J\xff\xff\xff\xff" + b"K\x01\x85K\x01\x85" + NOTHING,  # begins before the start
        b"K\x00" + b"J\xff\xff\xff\xff\x85K\x01\x85" + NOTHING,  # a negative size
        b"K\x00" + b"K\x02\x85J\xff\xff\xff\xff\x85" + NOTHING,  # a negative step
        b"K\x00" + b"K\x06\x85K\x02\x85" + NOTHING,  # steps beyond the end
        b"K\x00" + b"K\x03\x85K\x01K\x01\x86" + NOTHING,  # more steps than sizes
        b"K\x00" + b"\x8a\x09" + bytes(8) + b"\x01\x85K\x00\x85" + NOTHING,  # 2^64 numbers
        b"K\x00" + b"G?\xf0\x00\x00\x00\x00\x00\x00\x85K\x01\x85" + NOTHING,  # a fractional size
        b"N" + b"K\x01\x85K\x01\x85" + NOTHING,
        b"K\x00N" + b"K\x01\x85" + NOTHING,
        b"K\x00",
    ],
)
def test_tensors_that_claim_what_is_not_there_are_refused(tmp_path: Path, arguments: bytes) -> None:
    refused(tmp_path / "m.ckpt", rebuilt(arguments))


def test_the_same_tensor_with_true_claims_loads(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    path.write_bytes(rebuilt(b"K\x01" + b"K\x02K\x02\x86K\x02K\x01\x86" + NOTHING))
    assert read_pickle(path)["a"].shape == (2, 2)


@pytest.mark.parametrize(
    "storage",
    [
        corpus.text("storage"),
        b"(" + corpus.text("module") + b"ctorch\nFloatStorage\nX\x01\x00\x00\x000NK\x06tQ",
        b"(" + corpus.text("storage") + b"ctorch\nQInt8Storage\nX\x01\x00\x00\x000NK\x06tQ",
        b"(" + corpus.text("storage") + b"ctorch\nFloatStorage\nX\x01\x00\x00\x001NK\x06tQ",
        b"(" + corpus.text("storage") + b"ctorch\nFloatStorage\nX\x01\x00\x00\x000NK\x60tQ",
        b"(" + corpus.text("storage") + b"ctorch\nHalfStorage\nX\x01\x00\x00\x000NK\x06tQ",
        b"K\x01Q",
        b")Q",
    ],
)
def test_storages_that_are_not_in_the_file_are_refused(tmp_path: Path, storage: bytes) -> None:
    end = b"K\x00K\x01\x85K\x01\x85" + NOTHING
    refused(tmp_path / "m.ckpt", rebuilt(end, storage))
