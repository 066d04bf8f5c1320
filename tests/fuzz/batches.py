"""Inputs in child processes: a crash ends a child, is seen by its parent, and its input is kept."""

from __future__ import annotations

import importlib
import json
import mmap
import os
import pkgutil
import random
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

import sfumato
from sfumato.errors import SfumatoError
from tests.fuzz.kinds import KINDS, Reader, make_input, prepare
from tests.fuzz.watch import Watch

#: Seconds without any progress after which a child is taken for hung beyond rescue.
STUCK = 300.0

#: Letters of an error; what it quotes of a file has to be cut.
LONGEST_MESSAGE = 2000


@dataclass
class Report:
    """What came of the inputs.

    Attributes:
        outcomes: of each kind, how many were ``read`` by some reader, or by which error they were
            refused by all.
        failures: inputs that broke something: number, kind, and what happened.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[tuple[int, str, str]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many inputs there were."""
        return self.outcomes.total() + len(self.failures)


def try_input(read: Reader, path: Path, watch: Watch | None = None) -> str:
    """Feed a file to a reader.

    Returns:
        ``"read"``, or the class of the `SfumatoError` with which the file was refused.

    Raises:
        BaseException: what the reader raised instead.
    """
    try:
        watch.run(lambda: read(path)) if watch else read(path)
    except SfumatoError as error:
        if len(str(error)) > LONGEST_MESSAGE:
            raise AssertionError(f"a message of {len(str(error))} letters") from error
        return type(error).__name__
    return "read"


def run_batch(seed: int, numbers: range, folder: Path, kinds: Sequence[str] = ()) -> Report:
    """Feed inputs to their readers in a child process, and in more should one die."""
    report = Report()
    while numbers:
        progress = mmap.mmap(-1, 8)
        outcome = folder / "outcome.json"
        outcome.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            _child(seed, numbers, kinds, folder, progress, outcome)
        status = _wait(child, progress)
        reached = int.from_bytes(progress[:8], "little")
        if outcome.exists():
            values = json.loads(outcome.read_text())
            report.outcomes.update({(k, o): n for k, o, n in values["outcomes"]})
            report.failures += [tuple(failure) for failure in values["failures"]]
            return report
        number = numbers[reached]
        report.failures.append((number, make_input(seed, number, kinds)[0], f"the child {status}"))
        numbers = numbers[reached + 1 :]  # what the dead one had counted before is lost
    return report


def _wait(child: int, progress: mmap.mmap) -> str:
    """Wait for a child's end, or bring it about when nothing moves any more."""
    seen, since = b"", time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        now = bytes(progress[:8])
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > STUCK:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"hung for {STUCK:g} s"
        time.sleep(0.02)


def _child(
    seed: int,
    numbers: range,
    kinds: Sequence[str],
    folder: Path,
    progress: mmap.mmap,
    outcome: Path,
) -> None:
    """Run the inputs, write what came of them, and end the process."""
    code = 1
    try:
        torch.set_num_threads(1)
        report = Report()
        inputs = folder / "inputs"
        places = prepare(inputs)
        watch = Watch(inputs)
        for count, number in enumerate(numbers):
            progress[:8] = count.to_bytes(8, "little")
            name, content = make_input(seed, number, kinds)
            _one(number, name, content, places[name], watch, report)
        values = {
            "outcomes": [[*key, n] for key, n in report.outcomes.items()],
            "failures": report.failures,
        }
        outcome.write_text(json.dumps(values))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _one(number: int, name: str, content: bytes, path: Path, watch: Watch, report: Report) -> None:
    KINDS[name].write(path, content)
    try:
        outcomes = [try_input(read, path, watch) for read in KINDS[name].readers_of(content)]
    except BaseException as error:
        kept = [f for f in traceback.extract_tb(error.__traceback__) if "/sfumato/" in f.filename]
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in kept[:-4:-1])
        report.failures.append((number, name, f"{error!r:.300} at {where}"))
    else:
        report.outcomes[name, "read" if "read" in outcomes else outcomes[-1]] += 1
    finally:
        path.unlink(missing_ok=True)
    strays = [p.name for p in path.parent.parent.parent.iterdir()] if number % 64 == 0 else []
    if set(strays) - {"inputs", "outcome.json"}:
        report.failures.append((number, name, f"left files behind: {strays}"))


def run(
    seed: int, start: int, count: int, kinds: Sequence[str] = (), batch: int = 2000
) -> Iterator[Report]:
    """Reports of batches of inputs, one after the other."""
    room = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=room, prefix="fuzz-") as folder:
        os.chdir(folder)  # a file that is written under a relative name shows up here
        _warm(seed, Path(folder) / "inputs")
        for first in range(start, start + count, batch):
            numbers = range(first, min(first + batch, start + count))
            yield run_batch(seed, numbers, Path(folder), kinds)


def _warm(seed: int, folder: Path) -> None:
    """Import the whole package, and read some files of each kind for what others import late."""
    for module in pkgutil.walk_packages(sfumato.__path__, "sfumato."):
        if not module.name.endswith(("__main__", "._kernels")):
            importlib.import_module(module.name)
    importlib.import_module("numpy.ma")  # which some functions of NumPy ask for
    places = prepare(folder)
    for name, kind in KINDS.items():
        for number in range(20):
            kind.write(places[name], kind.make(random.Random(f"warm {seed} {number}")))
            for read in kind.readers:
                with suppress(Exception):  # it is found again where reports are written
                    try_input(read, places[name])
        places[name].unlink()
