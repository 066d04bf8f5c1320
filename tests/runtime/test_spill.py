"""Tensors that wait in a file come back as they were; without a file they wait in memory."""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.runtime import temporary
from sfumato.runtime.spill import Kept, Room, Space


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def several() -> list[Tensor]:
    image = torch.randn(2, 3, 8, 5)
    last = image.contiguous(memory_format=torch.channels_last)
    return [
        image,
        last,
        image[:, :, 2:5],
        last[:, :, 2:5],
        last[1:, :, 2:5],
        image.permute(3, 0, 2, 1),
        image[:, :1].expand(2, 3, 8, 5),
        image[..., ::2],
        image.double(),
        image.bfloat16(),
        image.long(),
        image > 0,
        torch.tensor(3.0),
        torch.empty(0, 3),
        torch.arange(4.0).as_strided((2, 2), (0, 3)),
    ]


@pytest.mark.usefixtures("place")
@torch.no_grad()
def test_tensors_come_back_as_they_were() -> None:
    tensors = several()
    copies = [t.clone() for t in tensors]
    with Room(-1) as room:
        waiting = [room.keep(t) for t in tensors]
        for t in tensors[:6]:
            t.zero_()  # a copy waits
        for _ in range(2):
            for kept, copy in zip(waiting, copies, strict=True):
                assert torch.equal(kept.get(), copy) and kept.get().dtype == copy.dtype
        random.Random(0).shuffle(order := list(range(len(waiting))))
        for i in order:
            assert torch.equal(waiting[i].take(), copies[i])
        last = torch.channels_last
        assert room.keep(copies[1]).take().is_contiguous(memory_format=last)
        assert room.keep(copies[1][:, :, 2:5]).take().is_contiguous(memory_format=last)


@pytest.mark.usefixtures("place")
@torch.no_grad()
def test_the_limit_is_what_waits_in_memory() -> None:
    with Room(100) as room:
        small, large, next_one = (room.keep(torch.zeros(n)) for n in (20, 10, 5))
        assert room.left == 0
        assert [in_memory(kept) for kept in (small, large, next_one)] == [True, False, True]
        small.take()
        large.take()
        assert room.left == 80
        assert in_memory(room.keep(torch.zeros(20))) and room.left == 0


def in_memory(kept: Kept) -> bool:
    return kept._tensor.device.type != "meta"


@torch.no_grad()
def test_nothing_is_left_of_the_file(place: Path) -> None:
    room = Room(0)
    with pytest.raises(KeyError), room:
        kept = room.keep(torch.ones(100))
        assert torch.equal(kept.get(), torch.ones(100))
        assert room._file.tell() == 400
        raise KeyError
    assert room._file.closed and not list(place.iterdir())


def test_a_room_that_needs_no_file_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    with Room() as room:
        assert torch.equal(room.keep(torch.ones(10**6)).take(), torch.ones(10**6))
    with Room(0) as room:
        x = torch.ones(3, requires_grad=True)
        assert room.keep(x).take() is x
        assert room.keep(x * 2).take().requires_grad
        assert room.keep(torch.empty(3, device="meta")).take().device.type == "meta"


@torch.no_grad()
def test_tangents_and_transforms_keep_their_tensors() -> None:
    def waited(x: Tensor) -> Tensor:
        with Room(0) as room:
            return room.keep(x * 2).take()

    x = torch.randn(3, 4)
    tangent = torch.func.jvp(waited, (x,), (torch.ones(3, 4),))[1]
    assert torch.equal(tangent, 2 * torch.ones(3, 4))
    assert torch.equal(torch.vmap(waited)(x), 2 * x)


def refuse(*_: Any, **__: Any) -> Any:
    raise PermissionError("read-only")


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=temporary.SPARE_DISK + 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(Path(tempfile.gettempdir()) / "gone"))


def no_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


def no_place_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("hinder", [no_room, no_folder, no_right, no_place_at_all])
@torch.no_grad()
def test_without_a_file_tensors_wait_in_memory(
    hinder: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hinder(monkeypatch)
    with Room(0) as room:
        waiting = [room.keep(torch.full((5,), float(i))) for i in range(3)]
        assert all(map(in_memory, waiting))
        assert [kept.take()[0].item() for kept in waiting] == [0, 1, 2]
    (record,) = caplog.records  # one for all three
    assert "TMPDIR" in record.getMessage()


@pytest.mark.usefixtures("place")
@torch.no_grad()
def test_a_disk_that_fills_up_keeps_what_it_has(caplog: pytest.LogCaptureFixture) -> None:
    class Small:
        """A file on a disk with room for 50 bytes, which it takes 7 at a time."""

        def __init__(self, file: Any) -> None:
            self.file = file
            self.seek, self.readinto, self.close = file.seek, file.readinto, file.close

        def write(self, raw: memoryview) -> int:
            if self.file.tell() + len(raw) > 50:
                raise OSError(28, "No space left on device")
            return self.file.write(raw[:7])

    with Room(0) as room:
        first = room.keep(torch.arange(10.0))
        room._file = Small(room._file)
        second, third = room.keep(torch.arange(2.0)), room.keep(torch.arange(10.0))
        assert [in_memory(kept) for kept in (first, second, third)] == [False, False, True]
        assert torch.equal(first.take(), torch.arange(10.0))
        assert torch.equal(second.take(), torch.arange(2.0))
        assert torch.equal(third.take(), torch.arange(10.0))
        assert in_memory(room.keep(torch.zeros(1)))  # no second try
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("place")
@torch.no_grad()
def test_a_file_that_lost_its_end_is_an_error() -> None:
    with Room(0) as room:
        kept = room.keep(torch.ones(100))
        room._file.truncate(7)
        with pytest.raises(OSError, match="lost its end"):
            kept.get()


class OnCard:
    """Stands for a tensor of an accelerator."""

    def __init__(self, numbers: Tensor) -> None:
        self.device, self.nbytes, self.numbers = torch.device("cuda", 1), numbers.nbytes, numbers

    def cpu(self) -> Tensor:
        return self.numbers.clone()


@torch.no_grad()
def test_tensors_of_an_accelerator_wait_in_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.runtime.spill._is_plain", lambda tensor: True)
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    sent: list[torch.device] = []
    to = Tensor.to
    with Room(16) as room:
        given: Any = OnCard(torch.arange(8.0))
        kept = room.keep(given)
        assert room.left == 16 and type(kept._tensor) is Tensor

        def note(tensor: Tensor, device: torch.device) -> Tensor:
            sent.append(device)
            return to(tensor, "cpu")

        monkeypatch.setattr(Tensor, "to", note)
        assert torch.equal(kept.get(), torch.arange(8.0))
        assert sent == [torch.device("cuda", 1)]


@pytest.mark.parametrize("seed", range(10))
def test_places_in_the_file_never_overlap_and_are_used_again(seed: int) -> None:
    pick, space = random.Random(seed), Space()
    taken: dict[int, int] = {}
    for _ in range(300):
        if taken and pick.random() < 0.5:
            start = pick.choice(list(taken))
            space.free(start, taken.pop(start))
        else:
            size = pick.randint(1, 50)
            growth, end = space.growth(size), space.end
            start = space.take(size)
            assert space.end == end + growth and start + size <= space.end
            assert all(start + size <= a or a + n <= start for a, n in taken.items())
            taken[start] = size
        free = space.end - sum(taken.values())
        holes = sorted(space._holes.items())
        assert sum(b - a for a, b in holes) == free
        assert all(before[1] < after[0] for before, after in itertools.pairwise(holes))
    for start, size in taken.items():
        space.free(start, size)
    assert space.growth(space.end) == 0 and space.growth(space.end + 3) == 3
