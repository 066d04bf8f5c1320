"""Workers, as many as fit into memory at once, asked in random order.

Every round asks each worker of a group once, so the times of a round were taken within seconds of
each other, and their ratios hold although the machine's clock drifts. The first contender is the
measure of the others: it is in every group.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cpu_peers.contenders import Contender
from benchmarks.cpu_peers.job import Job, Shape
from benchmarks.cpu_peers.worker import CEILING

#: Share of the free memory that workers may be expected to fill.
FILL = 0.8


class WorkerFailed(Exception):
    """A worker ended before it answered; the text is the last that it said."""


class Process:
    """A worker process, and how to talk to it."""

    def __init__(self, name: str, job: Job, outputs: Path) -> None:
        threads = str(job.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # imports are timed: let them be cached
        fields = {"part": job.part, "model": str(job.model), "threads": job.threads}
        fields["cache"] = str(job.cache)
        self.started = time.perf_counter()
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - see __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", worker_module(), name, json.dumps(fields), str(outputs)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order and wait for the answer.

        Raises:
            WorkerFailed: it ended instead.
        """
        pipe = self._process
        assert pipe.stdin is not None and pipe.stdout is not None
        try:
            pipe.stdin.write(json.dumps(order) + "\n")
            pipe.stdin.flush()
            line = pipe.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        code = pipe.wait()
        self._said.seek(0)
        lines = [text.strip() for text in self._said.read().splitlines() if text.strip()]
        raise WorkerFailed(lines[-1] if lines else f"ended with code {code}")

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()


def worker_module() -> str:
    """The name under which a new interpreter finds the worker."""
    return "benchmarks.cpu_peers.worker"


@dataclass
class Record:
    """What is known of one contender after a run.

    Attributes:
        name, precision: of the contender; see `Contender`.
        seconds: for each shape the times of its rounds, by the number of the round.
        ready: seconds from the start of the process to where a step could be taken.
        cold: the same to the end of the first step, which no median counts. Some compile in it,
            and mapped weights are read from their files.
        prepared: seconds of a conversion, if there was one in this run.
        peak: bytes that the process held at most.
        distance: of the output from that of the measure; root mean square, relative.
        failure: why there is nothing.
    """

    name: str
    precision: str
    seconds: dict[Shape, dict[int, float]] = field(default_factory=dict)
    ready: float | None = None
    cold: float | None = None
    prepared: float | None = None
    peak: int = 0
    distance: float | None = None
    failure: str | None = None


def free_memory() -> float:
    """Bytes that the system could give; without bound where it does not say."""
    table = Path("/proc/meminfo")
    if not table.exists():
        return float("inf")
    lines = [line for line in table.read_text().splitlines() if line.startswith("MemAvailable")]
    return int(lines[0].split()[1]) * 1024


def groups(
    contenders: Sequence[Contender], parameters: float, free: float
) -> list[list[Contender]]:
    """Contenders that can be loaded together, the first of all in every group.

    Args:
        contenders: at least one.
        parameters: of the part that is measured.
        free: bytes to fill.
    """
    measure, *others = contenders
    made = [[measure]]
    for contender in others:
        need = sum(c.memory for c in (*made[-1], contender)) * parameters
        if len(made[-1]) > 1 and need > free:
            made.append([measure])
        made[-1].append(contender)
    return made


def prepare(contenders: Iterable[Contender], job: Job, say: Callable[[str], None]) -> list[Record]:
    """Records of all contenders, with conversions done, each in a process of its own."""
    records = []
    for contender in contenders:
        record = Record(contender.name, contender.precision)
        records.append(record)
        missing = contender.missing()
        if missing:
            record.failure = f"not installed: {', '.join(missing)}"
        elif job.part not in contender.parts:
            record.failure = f"has no way to run {job.part!r} alone"
            if job.part == "image":
                record.failure = "has no pipeline of its own"
        elif contender.converts:
            say(f"preparing {contender.name}")
            with Process(contender.name, job, Path(os.devnull)) as process:
                try:
                    record.prepared = process.ask(prepare=True)["prepared"]
                except WorkerFailed as error:
                    record.failure = f"conversion failed: {error}"
    return records


class Run:
    """One run: what to measure of whom, and what came of it."""

    def __init__(self, job: Job, shapes: Sequence[Shape], rounds: int, seed: int = 0) -> None:
        self.job, self.shapes, self.rounds = job, list(shapes), rounds
        self.random = random.Random(seed)
        self.rates: list[dict[str, dict[str, float]]] = []
        self._groups = 0

    def group(self, records: Sequence[Record], outputs: Path, say: Callable[[str], None]) -> None:
        """Load these together and take all rounds of all shapes, in random order.

        Outputs of the last shape are left in a folder. Rounds are numbered on from group to group.
        """
        with ExitStack() as stack:
            ceiling = stack.enter_context(Process(CEILING, self.job, outputs))
            ceiling.ask(load=sorted({record.precision for record in records}))
            loaded: dict[str, Process] = {}
            for record in records:
                say(f"loading {record.name}")
                process = stack.enter_context(Process(record.name, self.job, outputs))
                if self._try(record, process, self._load):
                    loaded[record.name] = process
            for shape in self.shapes:
                self._shape(shape, [r for r in records if r.name in loaded], loaded, ceiling, say)
        self._groups += 1

    def _shape(
        self,
        shape: Shape,
        records: list[Record],
        loaded: dict[str, Process],
        ceiling: Process,
        say: Callable[[str], None],
    ) -> None:
        """A call of each that does not count, then the rounds."""
        for number in range(-1, self.rounds):
            order = [r for r in records if r.failure is None]
            self.random.shuffle(order)
            say(f"{shape}: round {number + 1} of {self.rounds}")
            for record in order:
                self._try(
                    record, loaded[record.name], lambda r, p, n=number: self._step(r, p, shape, n)
                )
            if number >= 0:
                self.rates.append(ceiling.ask(run={})["rates"])

    @staticmethod
    def _try(record: Record, process: Process, do: Callable[[Record, Process], None]) -> bool:
        try:
            do(record, process)
        except WorkerFailed as error:
            record.failure = f"failed: {error}"
            return False
        return True

    @staticmethod
    def _load(record: Record, process: Process) -> None:
        answer = process.ask(load=[])
        if record.ready is None:
            record.ready = time.perf_counter() - process.started
        record.peak = answer["peak"]

    def _step(self, record: Record, process: Process, shape: Shape, number: int) -> None:
        answer = process.ask(run=asdict(shape))
        record.peak = max(record.peak, answer["peak"])
        if number < 0:
            if record.cold is None and record.ready is not None:
                record.cold = record.ready + answer["wall"]
            return
        record.seconds.setdefault(shape, {})[self._groups * self.rounds + number] = answer[
            "seconds"
        ]
