"""Weights that wait in files from when they are loaded: how much memory loading takes."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.checkpoints import folders
from sfumato.checkpoints.source import TensorSource, open_source
from sfumato.checkpoints.tensors import save_safetensors
from sfumato.cli.drawing import _load
from sfumato.cli.models import Model
from sfumato.cli.saving import Saving
from sfumato.config import Config
from sfumato.errors import CheckpointError
from sfumato.models.base import ModelMixin
from sfumato.models.unet import UNet2DConditionModel
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from sfumato.quantization.tensor import stored
from sfumato.runtime import pages
from sfumato.runtime.allocator import release_memory
from tests.checkpoints.gguf.files import write_gguf
from tests.memory import Memory
from tests.pipelines.tiny import tiny_pipeline, tiny_unet

pytestmark = pytest.mark.skipif(not pages.works(), reason="this system keeps its pages to itself")
MIB = 2**20
CLEAR_PEAK = Path("/proc/self/clear_refs")
HALF = torch.float16


class MemoryOffFiles(Memory):
    """Counts tensors that lie on pages of no file."""

    def _note(self, storage: Any) -> None:
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        if pages.off_files([whole]):
            super()._note(storage)


def in_memory(network: nn.Module) -> list[Tensor]:
    """Weights of at least a page that wait in no file."""
    large = [t for t in stored(network.parameters()) if t.nbytes >= pages.PAGE]
    assert large
    return pages.off_files(large)


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return set(left) == set(right) and all(torch.equal(left[k], right[k]) for k in left)


def safetensors(tensors: dict[str, Tensor], path: Path) -> Any:
    save_safetensors(tensors, path)
    return open_source(path)


def pickle(tensors: dict[str, Tensor], path: Path) -> Any:
    torch.save(tensors, path)
    return open_source(path)


def gguf(tensors: dict[str, Tensor], path: Path) -> Any:
    return open_source(write_gguf(path, tensors, "Q8_0"))


def dictionary(tensors: dict[str, Tensor], path: Path) -> Any:
    return TensorSource(tensors)


@pytest.mark.parametrize(
    ("kind", "waiting"),
    [(kind, True) for kind in (safetensors, pickle, gguf, dictionary)] + [(safetensors, False)],
)
def test_converted_tensors_are_in_memory_one_at_a_time(
    kind: Callable[..., Any], waiting: bool, tmp_path: Path
) -> None:
    given = {str(i): torch.randn(512, 512).to(HALF) for i in range(16)}
    source = kind(given, tmp_path / "weights")
    size = 16 * 512 * 512 * 4
    with pages.settling(waiting) as settle, MemoryOffFiles() as memory:
        read = source.read(given, dtype=torch.float32, settle=settle)
    if waiting:
        assert memory.peak < size / 2
        assert memory.now < size / 100
        assert not pages.off_files(read.values())
    else:
        assert memory.now == size
    plain = source.read(given, dtype=torch.float32)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in read.items())


def test_blocks_wait_as_they_are(tmp_path: Path) -> None:
    source = gguf({"a": torch.randn(512, 512)}, tmp_path / "weights.gguf")
    plain = source.read(["a"], keep_blocks=True)["a"]
    with pages.settling(True) as settle:
        waiting = source.read(["a"], keep_blocks=True, settle=settle)["a"]
    assert pages.off_files(stored([plain]))
    assert not pages.off_files(stored([waiting]))
    assert torch.equal(waiting.plain(), plain.plain())


class Layers(ModelMixin[Any]):
    """A network of some size."""

    config_class = Config

    def __init__(self, config: Any = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        self.layers = nn.ModuleList(nn.Linear(2048, 2048, bias=False) for _ in range(9))


@pytest.mark.skipif(not os.access(CLEAR_PEAK, os.W_OK), reason="the peak cannot be set back")
@pytest.mark.parametrize(
    ("dtype", "ordinary"), [(torch.float32, 144), (HALF, 72)], ids=["converted", "as stored"]
)
def test_a_network_is_never_in_memory_as_a_whole(
    dtype: torch.dtype, ordinary: int, tmp_path: Path
) -> None:
    weight = torch.full((2048, 2048), 0.5, dtype=HALF)
    tensors = {f"layers.{i}.weight": weight + i for i in range(9)}  # 72 MiB: such a file is mapped
    save_safetensors(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    del tensors

    def growth(**options: Any) -> float:
        """By how much loading lets memory grow, in MiB, and whether the numbers are right."""
        release_memory()
        CLEAR_PEAK.write_text("5")
        before = status("VmHWM")
        network = Layers.from_pretrained(tmp_path, torch_dtype=dtype, **options)
        grown = status("VmHWM") - before
        for i, parameter in enumerate(network.parameters()):
            assert torch.equal(parameter, weight.to(dtype) + i)
        return grown

    growth(offload_state_dict=True)  # imports what it needs
    assert growth(offload_state_dict=True) < 0.5 * ordinary
    assert growth() > 0.8 * ordinary


def status(name: str) -> float:
    """A line about this process, in MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{name}:")[2].split()[0]) / 1024


@pytest.mark.parametrize(("form", "quantization"), [("folder", None), ("file", "int8")])
def test_the_weights_of_a_pipeline_wait_and_are_the_same(
    form: str, quantization: str | None, tmp_path: Path
) -> None:
    made = tiny_pipeline()
    load: Callable[..., StableDiffusionPipeline]
    if form == "file":
        path, load = tmp_path / "model.safetensors", StableDiffusionPipeline.from_single_file
        made.save_single_file(path, dtype=HALF)
    else:
        path, load = tmp_path / "model", StableDiffusionPipeline.from_pretrained
        made.to(HALF, silence_dtype_warnings=True).save_pretrained(path)
    options: dict[str, Any] = {"torch_dtype": torch.float32, "quantization": quantization}
    plain, waiting = load(path, **options), load(path, **options, offload_state_dict=True)
    for name in ("unet", "vae", "text_encoder"):
        assert in_memory(getattr(plain, name))
        assert not in_memory(getattr(waiting, name))
        assert same(getattr(plain, name), getattr(waiting, name))


def test_the_weights_of_a_single_network_wait(tmp_path: Path) -> None:
    made = tiny_unet()
    made.save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path, offload_state_dict=True)
    assert not in_memory(loaded)
    assert same(loaded, made)


def test_tensors_of_the_caller_stay_where_they_are() -> None:
    state = tiny_unet().state_dict()
    loaded = UNet2DConditionModel.from_single_file(
        state, **dict(tiny_unet().config), offload_state_dict=True
    )
    assert len(pages.off_files(state.values())) == len(state)
    assert all(torch.equal(t, state[name]) for name, t in loaded.state_dict().items())


def test_a_mix_of_types_waits_too(tmp_path: Path) -> None:
    made = tiny_unet()
    state = {n: t.to(HALF) if i % 2 else t for i, (n, t) in enumerate(made.state_dict().items())}
    made.save_pretrained(tmp_path)
    save_safetensors(state, tmp_path / "diffusion_pytorch_model.safetensors")
    options: dict[str, Any] = {"torch_dtype": "auto"}
    loaded = UNet2DConditionModel.from_pretrained(tmp_path, **options, offload_state_dict=True)
    assert not in_memory(loaded)
    assert same(loaded, UNet2DConditionModel.from_pretrained(tmp_path, **options))


def test_weights_that_find_no_room_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = tiny_unet()
    made.save_pretrained(tmp_path)
    usage = shutil.disk_usage("/")._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path, offload_state_dict=True)
    assert "weights stay in memory" in caplog.text
    assert same(loaded, made)


@pytest.mark.parametrize("error", [KeyboardInterrupt, CheckpointError])
def test_nothing_is_left_of_the_file_when_loading_ends_early(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_unet().save_pretrained(tmp_path / "model")
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    held: list[int] = []

    def open_files() -> int:
        links = [link for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link)]
        return sum(os.readlink(link).startswith(str(place)) for link in links)

    def fail(*_: Any) -> None:
        held.append(open_files())
        raise error("now")

    monkeypatch.setattr(folders, "assign", fail)
    with pytest.raises(error, match="now"):
        UNet2DConditionModel.from_pretrained(tmp_path / "model", offload_state_dict=True)
    gc.collect()
    assert held[0] > 0
    assert not open_files()
    assert not list(place.iterdir())


@pytest.mark.parametrize("low_memory", [True, False])
def test_the_command_loads_onto_files_where_memory_is_low(low_memory: bool, embedded: Path) -> None:
    model = Model(path=embedded, name="embedded", embedded=True)
    pipe = _load(model, "bfloat16", torch.device("cpu"), Saving(low_memory=low_memory))
    assert bool(in_memory(pipe.unet)) is not low_memory
