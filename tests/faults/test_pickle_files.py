"""Torch's pickle files: what is no plain table of numbers is refused, and nothing in it runs."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from sfumato.checkpoints.pickles import read_pickle
from sfumato.errors import CheckpointError
from sfumato.models.unet import UNet2DConditionModel
from tests.checkpoints.tiny import UNET
from tests.faults.hostile_files import (
    call_pickle,
    in_legacy_torch,
    in_torch_zip,
    torch_bytes,
    within,
)

CALLS = [
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "check_output"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("torch", "load"),
    ("torch.serialization", "load"),
    ("torch.hub", "load_state_dict_from_url"),
    ("torch.utils._config_module", "ConfigModule.load_config"),
    ("torch.jit.unsupported_tensor_ops", "execWrapper"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.f2py.crackfortran", "getlincoef"),
    ("numpy.testing._private.utils", "runstring"),
    ("timeit", "timeit"),
    ("runpy", "_run_code"),
    ("pip", "main"),
    ("pdb", "run"),
    ("cProfile", "run"),
    ("code", "InteractiveInterpreter"),
    ("doctest", "debug_script"),
    ("idlelib.pyshell", "ModifiedInterpreter"),
    ("asyncio.unix_events", "_UnixSubprocessTransport"),
    ("operator", "methodcaller"),
    ("functools", "partial"),
    ("pickle", "loads"),
    ("shutil", "rmtree"),
    ("ctypes", "CDLL"),
    ("webbrowser", "open"),
    ("sfumato.checkpoints.pickles", "read_pickle"),
]


@pytest.mark.parametrize("container", [in_torch_zip, in_legacy_torch, bytes])
@pytest.mark.parametrize(("module", "name"), CALLS)
def test_a_pickle_that_calls_something_is_refused_and_does_not_call_it(
    tmp_path: Path, container: type, module: str, name: str
) -> None:
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')"
    shell = name in ("system", "check_output")
    pickled = call_pickle(module, name, (f"touch {canary}" if shell else code,))
    path = tmp_path / "m.bin"
    path.write_bytes(container(pickled))
    with within(), pytest.raises(CheckpointError) as caught:
        read_pickle(path)
    assert not canary.exists()
    # The advice in torch's own message, to switch the protection off, must not reach the user.
    assert "weights_only" not in str(caught.value)
    assert "m.bin" in str(caught.value)


def test_the_refusal_names_what_the_pickle_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(in_torch_zip(call_pickle("os", "system", ("true",))))
    with pytest.raises(CheckpointError, match=r"refused: it holds more than numbers.*`os.system`"):
        read_pickle(path)


def test_a_call_hidden_behind_sound_weights_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'canary'}",)

    folder = tmp_path / "evil"
    model = UNet2DConditionModel(UNET)
    model.save_pretrained(folder)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    state = dict(model.state_dict())
    torch.save({**state, "extra": Evil()}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="refused"):
        UNet2DConditionModel.from_pretrained(folder)
    assert not (tmp_path / "canary").exists()


def test_a_compressed_archive_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    path = tmp_path / "bomb.bin"
    path.write_bytes(in_torch_zip(bytes(50_000_000), compression=zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 100_000
    with within(), pytest.raises(CheckpointError, match="compressed"):
        read_pickle(path)


@pytest.mark.parametrize(
    "name", ["../../x", "archive/../../x", "/etc/x", "..\\x", "C:\\x", "archive/data/.."]
)
def test_an_archive_with_a_member_outside_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(torch_bytes({"a": torch.zeros(3)}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
    with pytest.raises(CheckpointError, match="points outside"):
        read_pickle(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin"]


def test_a_legacy_torch_file_is_read_as_data(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    state = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    path.write_bytes(torch_bytes(state, _use_new_zipfile_serialization=False))
    loaded = read_pickle(path)
    assert set(loaded) == {"a", "b"}
    assert all(torch.equal(loaded[k], v) for k, v in state.items())


def test_other_containers_are_refused_in_a_sentence(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"\x80\x02."))
    contents = {
        "tar": buffer.getvalue(),
        "empty": b"",
        "zip without a pickle": in_torch_zip(b"")[:-30],
        "html": b"<!DOCTYPE html><html></html>",
        "text": b"not a checkpoint",
        "cut": torch_bytes({"a": torch.zeros(1000)})[:-100],
        "list": torch_bytes([torch.zeros(3)]),
        "number": torch_bytes(7),
        "no tensors": torch_bytes({"epoch": 3}),
    }
    for label, content in contents.items():
        path = tmp_path / "m.bin"
        path.write_bytes(content)
        with within(), pytest.raises(CheckpointError) as caught:
            read_pickle(path)
        assert "weights_only" not in str(caught.value), label


def test_a_tensor_that_claims_more_than_its_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    torch.save({"a": torch.zeros(1).expand(2**40)}, path)
    assert path.stat().st_size < 10_000
    with within(), pytest.raises(CheckpointError, match="no plain tensor"):
        read_pickle(path)


def test_an_empty_tensor_of_absurd_sizes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    torch.save({"a": torch.zeros(0, 77_777, 77_777)}, path)
    assert read_pickle(path)["a"].shape == (0, 77_777, 77_777)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    size, absurd = b"J" + struct.pack("<i", 77_777), b"\x8a\x08" + struct.pack("<q", 2**60)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            assert not name.endswith("data.pkl") or size in data
            archive.writestr(name, data.replace(size, absurd))
    with pytest.raises(CheckpointError, match="no plain tensor"):
        read_pickle(path)


def test_tensors_that_are_not_plain_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    for odd in (torch.zeros(3, 3).to_sparse(), torch.zeros(3, device="meta")):
        torch.save({"a": odd}, path)
        with pytest.raises(CheckpointError):
            read_pickle(path)
