"""Choosing device, precision and threads by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sfumato.errors import InputError
from sfumato.runtime.device import DTYPES, pick_device, pick_dtype, set_threads


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_auto_takes_the_accelerator_when_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device().type == "cuda"
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="no device 'cuda:2'"):
        pick_device("cuda:2")


def test_a_device_that_is_not_there_is_an_error_that_names_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="Use the device 'cpu'"):
        pick_device("cuda")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "cuda:-1", "cuda:²", "meta", "cudda"])
def test_an_unknown_device_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match="it is one of auto, cpu"):
        pick_device(name)


def test_every_data_type_has_its_torch_name() -> None:
    gpu = torch.device("cuda")
    assert [pick_dtype(name, gpu) for name in DTYPES[1:]] == [
        torch.float32, torch.bfloat16, torch.float16,
    ]  # fmt: skip


def test_float16_is_refused_on_a_cpu_and_a_misspelling_gets_a_hint() -> None:
    with pytest.raises(InputError, match="bfloat16"):
        pick_dtype("float16")
    with pytest.raises(InputError, match="Did you mean 'bfloat16'"):
        pick_dtype("bfloat61")


def test_the_number_of_threads_is_set_and_reported() -> None:
    assert set_threads(1) == torch.get_num_threads() == 1
    assert set_threads(None) == 1
    for wrong in (0, -1, 10**9):
        with pytest.raises(InputError, match="from 1 to 1024"):
            set_threads(wrong)
