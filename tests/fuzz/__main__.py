"""The command: feed damaged files to every reader and say what came of it.

    python -m tests.fuzz --count 1000000 --seed 0
    python -m tests.fuzz --only 12345 --save .     # write that input to a file

Ends with 1 when an input broke something; its number and the seed make it again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

from tests.fuzz.batches import Report, run, try_input
from tests.fuzz.kinds import KINDS, make_input, prepare


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="how many inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=[], metavar="KIND")
    parser.add_argument("--only", type=int, help="run a single input in this process")
    parser.add_argument("--save", type=Path, help="folder for the inputs that broke something")
    options = parser.parse_args(arguments)
    logging.getLogger("sfumato").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", RuntimeWarning)  # numbers that overflow or are none
    if options.only is not None:
        return _only(options)
    total, began = Report(), time.monotonic()
    save = options.save.resolve() if options.save else None
    for report in run(options.seed, options.start, options.count, options.kinds):
        total.outcomes += report.outcomes
        total.failures += report.failures
        for failure in report.failures:
            print("FAILED input {} ({}): {}".format(*failure), flush=True)
            if save:
                _save(save, options, failure[0])
        rate = total.count / (time.monotonic() - began)
        print(f"{total.count} inputs, {len(total.failures)} failures, {rate:.0f}/s", flush=True)
    print(_table(total))
    return 1 if total.failures else 0


def _only(options: argparse.Namespace) -> int:
    """One input again, outside of the watch, so that its traceback is seen."""
    name, content = make_input(options.seed, options.only, options.kinds)
    if options.save:
        print(_save(options.save, options, options.only))
    with tempfile.TemporaryDirectory() as folder:
        path = prepare(Path(folder))[name]
        KINDS[name].write(path, content)
        print(f"{name}, {len(content)} bytes")
        for read in KINDS[name].readers_of(content):
            print(f"{read.__name__}: {try_input(read, path)}")
    return 0


def _save(folder: Path, options: argparse.Namespace, number: int) -> Path:
    name, content = make_input(options.seed, number, options.kinds)
    path = folder / name / f"{options.seed}-{number}{Path(KINDS[name].file).suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _table(report: Report) -> str:
    """Inputs by kind and outcome."""
    lines = [f"{'kind':24}{'inputs':>9}{'read':>9}  refused"]
    for kind in KINDS:
        outcomes = {o: n for (k, o), n in sorted(report.outcomes.items()) if k == kind}
        errors = ", ".join(f"{n} {o}" for o, n in outcomes.items() if o != "read")
        lines.append(f"{kind:24}{sum(outcomes.values()):9}{outcomes.get('read', 0):9}  {errors}")
    lines.append(f"{'all':24}{report.outcomes.total():9}  failures: {len(report.failures)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
