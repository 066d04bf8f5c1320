"""Weights that wait in files: their memory comes and goes, their numbers stay."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sfumato.checkpoints.tensors import read_safetensors
from sfumato.pipelines.offload import LayerRelease, ModelRelease, wait_in_files
from sfumato.quantization.network import quantize
from sfumato.runtime import pages

pytestmark = pytest.mark.skipif(not pages.works(), reason="this system keeps its pages to itself")
MIB = 2**20


def resident() -> float:
    """Memory of this process, in MiB."""
    return pages_in_memory(1)


def pages_in_memory(field: int) -> float:
    """MiB of a field of `statm`: 1 for all memory of this process, 2 for that of files."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[field]) * os.sysconf("SC_PAGE_SIZE") / MIB


def test_memory_of_a_mapped_file_is_given_back(tmp_path: Path) -> None:
    numbers = torch.arange(24 * MIB, dtype=torch.float32)
    save_file({"a": numbers}, tmp_path / "a.safetensors")
    total = numbers.double().sum()
    mapped = read_safetensors(tmp_path / "a.safetensors", mmap=True, check_finite=False)["a"]
    assert not pages.off_files([mapped])
    assert mapped.double().sum() == total
    before = resident()
    assert pages.give_back([mapped]) > 95 * MIB
    assert resident() < before - 90
    assert mapped.double().sum() == total


def test_numbers_that_were_changed_are_kept(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(MIB)}, tmp_path / "a.safetensors")
    mapped = read_safetensors(tmp_path / "a.safetensors", mmap=True)["a"]
    mapped[MIB // 2] = 3
    assert pages.give_back([mapped]) == 0
    assert mapped.sum() == 3


def test_memory_of_no_file_is_left_alone() -> None:
    made = torch.ones(MIB)
    assert pages.off_files([made]) == [made] or pages.off_files([made])[0] is made
    assert pages.give_back([made, torch.ones(3), torch.empty(0), torch.ones(2, device="meta")]) == 0
    assert made.sum() == MIB


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_tensors_keep_what_they_are_on_a_temporary_file(dtype: torch.dtype) -> None:
    image = torch.randint(0, 100, (3, 8, 40, 40)).to(dtype)
    parts = [image, image.clone(memory_format=torch.channels_last), torch.tensor(5).to(dtype)]
    copies = [t.clone() for t in parts]
    pages.put_on_file(parts)
    assert not pages.off_files(parts)
    for part, copy in zip(parts, copies, strict=True):
        assert torch.equal(part, copy)
        assert part.stride() == copy.stride()
    assert pages.give_back(parts) > 0
    assert all(map(torch.equal, parts, copies))
    image.add_(1)
    assert pages.give_back([image]) == 0
    assert torch.equal(image, copies[0] + 1)


def test_a_full_disk_leaves_weights_in_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = shutil.disk_usage("/")._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    layer = nn.Linear(1000, 1000)
    weight = layer.weight.clone()
    wait_in_files([layer])
    assert "4 MB of weights stay in memory" in caplog.text
    assert torch.equal(layer.weight, weight)


class Watched(nn.Sequential):
    """Layers of 16 MiB that note how much memory there is while they compute."""

    def __init__(self, journal: list[float]) -> None:
        super().__init__(*(nn.Linear(2048, 2048) for _ in range(8)))
        for layer in self:
            layer.register_forward_hook(lambda *_: journal.append(resident()))


@pytest.mark.parametrize("kind", ["layers", "networks"])
@torch.no_grad()
def test_weights_are_in_memory_while_they_are_used(kind: str) -> None:
    journal: list[float] = []
    networks = [Watched(journal), Watched(journal)]
    x = torch.randn(1, 2048)
    plain = [network(x) for network in networks]
    held: Any = LayerRelease(networks, 16 * MIB) if kind == "layers" else ModelRelease(networks)
    journal.clear()
    start = resident()
    again = [network(x) for network in networks]
    room = 48 if kind == "layers" else 160  # of 256 in all
    assert max(journal) - start < room
    held.release()
    held.remove()
    assert resident() - start < 48
    assert all(map(torch.equal, again, plain))
    assert not any(m._forward_pre_hooks for network in networks for m in network.modules())


@pytest.mark.parametrize("kind", ["int8", "int8-weights", "int4"])
@torch.no_grad()
def test_quantised_weights_are_given_back_too(kind: str) -> None:
    network = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8))).eval()
    quantize(network, kind, keep=())
    x = torch.randn(1, 2048)
    plain = network(x)
    LayerRelease([network], 8 * MIB)
    before = pages_in_memory(2)
    assert torch.equal(network(x), plain)
    assert pages_in_memory(2) - before < 8  # of 20 to 34
