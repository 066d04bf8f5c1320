"""A process that loads one contender and then does as the lines on its standard input say.

    {"prepare": true}                 convert what has to be converted; then it ends
    {"load": []}                      answers when a step could be taken; the list is of precisions
    {"run": {"size": ..., ...}}       takes a step, answers with the time

Every answer is a line of JSON on what was standard output at first; anything that libraries print
goes to standard error. The ceiling is a contender of its own, named "ceiling".
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.cpu_peers.contenders import find
from benchmarks.cpu_peers.job import Job, Runner, Shape

CEILING = "ceiling"


def peak() -> int:
    """Bytes that this process has held at most; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) * 1024


class Worker:
    """The contender, once it is loaded."""

    def __init__(self, name: str, job: Job, outputs: Path) -> None:
        self.name, self.job, self.outputs = name, job, outputs
        self.runner: Runner | None = None
        self.products: Any = None

    def prepare(self) -> dict[str, Any]:
        """Convert once."""
        contender = find([self.name])[0]
        module = importlib.import_module(f"benchmarks.cpu_peers.{contender.module}")
        started = time.perf_counter()
        if hasattr(module, "prepare"):
            module.prepare(self.job, **contender.options)
        return {"prepared": time.perf_counter() - started, "peak": peak()}

    def load(self, precisions: Sequence[str] = ()) -> dict[str, Any]:
        """Load, up to where a step could be taken; or what the ceiling is measured in."""
        if self.name == CEILING:
            from benchmarks.cpu_peers import ceiling

            self.products = ceiling.products(self.job.threads, precisions)
            return {"ready": True, "peak": peak()}
        contender = find([self.name])[0]
        module = importlib.import_module(f"benchmarks.cpu_peers.{contender.module}")
        self.runner = module.load(self.job, **contender.options)
        return {"ready": True, "peak": peak()}

    def run(self, shape: Shape) -> dict[str, Any]:
        """Take a step; its output is left in a file of the contender's name."""
        if self.name == CEILING:
            from benchmarks.cpu_peers import ceiling

            return {"rates": ceiling.measure(self.products)}
        assert self.runner is not None
        started = time.perf_counter()
        sample = self.runner(shape)
        wall = time.perf_counter() - started
        seconds = wall if sample.seconds is None else sample.seconds
        if sample.output is not None:
            np.save(self.outputs / f"{self.name}.npy", sample.output)
        return {"seconds": seconds, "wall": wall, "peak": peak()}


def serve(worker: Worker, orders: TextIO, answers: TextIO) -> None:
    """Do as told until there are no more orders."""
    for line in orders:
        order = json.loads(line)
        if "prepare" in order:
            answer = worker.prepare()
        elif "load" in order:
            answer = worker.load(order["load"])
        else:
            answer = worker.run(Shape(**order["run"]))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """``worker.py NAME JOB OUTPUTS``, with the job as JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, job, outputs = sys.argv[1:]
    fields = json.loads(job)
    made = Job(fields["part"], Path(fields["model"]), fields["threads"], Path(fields["cache"]))
    serve(Worker(name, made, Path(outputs)), sys.stdin, answers)


if __name__ == "__main__":
    main()
