"""One command that runs sfumato and every installed peer on the processor, beside each other.

    python -m benchmarks.cpu                       # a UNet step of Stable Diffusion 1.5's size
    python -m benchmarks.cpu --what vae --dtype bfloat16
    python -m benchmarks.cpu --what image --steps 20 --only sfumato-bfloat16 diffusers-float32
    python -m benchmarks.cpu --curves --only sfumato-bfloat16    # over resolution and batch

All get the same weights (random ones, or those of ``--model FOLDER``) and the same inputs. Each is
loaded once, in a process of its own; then every round asks each for one step, in random order, and
ratios are taken within rounds. Those that do not fit into the free memory together are measured one
group after another, the first contender in each. A peer that is not installed is listed as such.

Peers that need a conversion keep the result below ``--cache``: some 10 GB for all, and minutes.

The table's columns: median and quartiles of the calls; operations per second, and how much that is
of the ceiling, the best rate of matrix products that any library here reached in the same rounds
(who convolves by Winograd's method takes fewer operations than are counted, and may be above it);
the peak of the process's memory (pages of mapped files that were touched count); seconds from the
start of the process to the end of the first step; the distance of the result from the first
contender's, root mean square, relative; and how many times longer each took than ours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu_peers import contenders as table_of
from benchmarks.cpu_peers import plots, pool, report, work
from benchmarks.cpu_peers.contenders import Contender
from benchmarks.cpu_peers.job import PARTS, Job, Shape
from benchmarks.cpu_peers.pool import Record

SIZES = (256, 512, 768, 1024, 1536)
BATCHES = (1, 2, 4, 8)
STEPS = (1, 2, 4, 8)
#: Packages whose versions are noted beside the figures.
VERSIONS = ("torch", "diffusers", "openvino", "nncf", "onnxruntime", "stable-diffusion-cpp-python")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu",
        description=(__doc__ or "").partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    names = [contender.name for contender in table_of.CONTENDERS]
    add = parser.add_argument
    add("--what", choices=PARTS, default="unet", help="a call of this network, or a whole picture")
    add("--only", nargs="+", metavar="NAME", help=f"of {', '.join(names)}")
    add("--skip", nargs="+", metavar="NAME", default=[], help="contenders to leave out")
    add("--dtype", choices=("float32", "bfloat16", "int8"), help="contenders that compute in it")
    add("--size", type=int, default=512, help="height and width of the picture")
    add("--batch", type=int, default=1, help="pictures at once, each with guidance")
    add("--steps", type=int, default=4, help="of a whole picture")
    add("--rounds", type=int, default=5, help="calls of each contender that count")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for each contender")
    add("--model", type=Path, help="a folder in diffusers' layout; made where it is not given")
    add("--cache", type=Path, help="folder for converted models; a temporary one by default")
    add("--output", type=Path, help="folder for cpu-WHAT.json and the plots")
    add("--curves", action="store_true", help="measure over resolution, batch and steps")
    add("--sizes", type=int, nargs="+", default=SIZES, help="of --curves")
    add("--batches", type=int, nargs="+", default=BATCHES, help="of --curves")
    add("--seed", type=int, default=0, help="of the order of contenders")
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> list[Contender]:
    """The contenders asked for; ours first."""
    names = options.only or [contender.name for contender in table_of.CONTENDERS]
    table_of.find(options.skip)
    found = [c for c in table_of.find(names) if c.name not in options.skip]
    if options.dtype is not None:
        found = [c for c in found if c.precision == options.dtype]
    if not found:
        raise SystemExit("No contender is left.")
    return found


def shapes(options: argparse.Namespace) -> list[Shape]:
    """What to measure: one shape, or those of the curves."""
    base = Shape(options.size, options.batch, options.steps)
    if not options.curves:
        return [base]
    made = [Shape(size, base.batch, base.steps) for size in options.sizes]
    made += [Shape(base.size, batch, base.steps) for batch in options.batches]
    if options.what == "image":
        made += [Shape(base.size, base.batch, steps) for steps in STEPS]
    return list(dict.fromkeys(made))


@contextmanager
def places(options: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """The model and the folder for conversions, which may be made for the while."""
    with tempfile.TemporaryDirectory() as temporary:
        cache = options.cache or Path(temporary)
        model = options.model or cache / "model"
        if options.model is None and not (model / "model_index.json").exists():
            from benchmarks.loading import write_folder

            print("writing random weights of Stable Diffusion 1.5's size")
            write_folder(model)
        yield model.absolute(), cache.absolute()


def measure(
    run: pool.Run, asked: Sequence[Contender], parameters: int
) -> tuple[list[Record], list[str]]:
    """Records of all contenders, and remarks for the reader."""
    records = pool.prepare(asked, run.job, print)
    usable = [c for c, r in zip(asked, records, strict=True) if r.failure is None]
    remarks: list[str] = []
    if usable:
        groups = pool.groups(usable, parameters, pool.FILL * pool.free_memory())
        for number, group in enumerate(groups):
            names = [contender.name for contender in group]
            with tempfile.TemporaryDirectory() as outputs:
                members = [record for record in records if record.name in names]
                run.group(members, Path(outputs), print)
                compare(members, Path(outputs))
            if number:
                apart = ", ".join(names[1:])
                remarks.append(f"Not enough memory for all at once; measured apart: {apart}.")
    return records, remarks


def compare(records: Sequence[Record], outputs: Path) -> None:
    """Note how far each output is from the first contender's."""
    first, *others = (outputs / f"{record.name}.npy" for record in records)
    if not first.exists():
        return
    expected = np.load(first)
    for record, path in zip(records[1:], others, strict=True):
        if path.exists() and (output := np.load(path)).shape == expected.shape:
            apart = np.sqrt(np.mean((output - expected) ** 2) / np.mean(expected**2))
            record.distance = float(apart)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    versions = {}
    for name in VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    return plain | {"machine": platform.processor() or platform.machine(), "versions": versions}


def show(
    options: argparse.Namespace,
    records: Sequence[Record],
    counted: dict[Shape, dict[str, float]],
    rates: Sequence[dict[str, dict[str, float]]],
) -> None:
    """Print the tables; write JSON and plots if asked for."""
    best = report.ceilings(rates)
    for precision, (library, rate) in best.items():
        print(f"ceiling in {precision}: {rate:.0f} GFLOP/s ({library})")
    for shape, kinds in counted.items():
        gflop = sum(kinds.values())
        parts = ", ".join(f"{kind} {value:.0f}" for kind, value in kinds.items())
        steps = f", {shape.steps} steps" if options.what == "image" else ""
        print(f"\n{options.what} {shape.size}x{shape.size}, batch {shape.batch}{steps}:", end=" ")
        print(f"{gflop:.0f} GFLOP ({parts}), {options.threads} threads")
        print("\n".join(report.table(records, shape, gflop, best)))
    if options.output is None:
        return
    options.output.mkdir(parents=True, exist_ok=True)
    name = f"cpu-{options.what}"
    everything = report.as_json(records, counted, rates, settings_of(options))
    (options.output / f"{name}.json").write_text(json.dumps(everything, indent=1), "utf-8")
    if find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed")
        return
    first, gflop = next((shape, sum(kinds.values())) for shape, kinds in counted.items())
    title = f"{options.what}, {first.size}x{first.size}, batch {first.batch}"
    if options.curves:
        plots.curves(options.output / f"{name}-curves.png", records, counted, options.what)
    else:
        floors = {precision: gflop / rate for precision, (_, rate) in best.items()}
        plots.bars(options.output / f"{name}.png", records, first, floors, title)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    options = parse(arguments)
    asked = chosen(options)
    with places(options) as (model, cache):
        job = Job(options.what, model, options.threads, cache)
        asked_shapes = shapes(options)
        counted = {shape: work.operations(job, shape) for shape in asked_shapes}
        run = pool.Run(job, asked_shapes, options.rounds, options.seed)
        records, remarks = measure(run, asked, work.parameters(job))
    show(options, records, counted, run.rates)
    for remark in remarks:
        print(remark)


if __name__ == "__main__":
    main()
