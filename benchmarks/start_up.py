"""From pressing Enter to the picture: the command cold, with NumPy beside torch.

    python -m benchmarks.start_up --runs 7

Each run is a process of its own, from its start to its exit: the interpreter, all imports, the
embedded model, the picture in its file. Backends take turns, so that a machine that drifts drifts
for all; medians and their ratio are printed. The first round warms the disk's cache and is left
out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

PROMPT = "a red apple"


def seconds(backend: str, folder: Path, options: Sequence[str]) -> float:
    """How long the command takes from its start to its exit."""
    command = [sys.executable, "-m", "sfumato", PROMPT, "--seed", "0", "--backend", backend]
    start = time.perf_counter()
    subprocess.run(
        [*command, "-o", str(folder / "%03d.png"), *options], check=True, capture_output=True
    )
    return time.perf_counter() - start


def measure(
    backends: Sequence[str], runs: int, options: Sequence[str] = ()
) -> dict[str, list[float]]:
    """Seconds of each run by backend, the backends in turns; a first round does not count."""
    times: dict[str, list[float]] = {backend: [] for backend in backends}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(runs + 1):
            for backend in backends:
                taken = seconds(backend, Path(folder), options)
                if round_ > 0:
                    times[backend].append(taken)
    return times


def report(times: dict[str, list[float]]) -> str:
    """A table of medians, best and worst, and how many times as long as the first."""
    first = median(next(iter(times.values())))
    lines = ["| backend | median s | best | worst | ratio |", "|---|---|---|---|---|"]
    for backend, taken in times.items():
        middle = median(taken)
        lines.append(
            f"| {backend} | {middle:.2f} | {min(taken):.2f} | {max(taken):.2f}"
            f" | {middle / first:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--backends", nargs="+", default=["numpy", "torch"])
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="for the command")
    given = parser.parse_args()
    print(report(measure(given.backends, given.runs, given.options)))


if __name__ == "__main__":
    main()
