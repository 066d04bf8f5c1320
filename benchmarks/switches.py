"""What each memory switch saves and costs at Stable Diffusion 1.5's size, sfumato beside diffusers.

    python -m benchmarks.switches --size 512 --size 1024 [--case NAME ...] [--model FOLDER]
                                 [--dtype float32]

Every measurement is a process of its own that loads the model in bfloat16, or another ``--dtype``,
and the two libraries take turns. Peak is that of the resident set (``VmHWM``) once the switch is
set, weights included. Times are the processor's on one thread, since other programs on a machine do
not count into them. One step of the UNet has a batch of two, as guidance wants; a decoding has one
picture.

Measured rows go into ``docs/memory.json``, where they replace those of the same name, type and
size, with the name of the processor, and the tables of ``docs/memory.md`` are written from it.
Rows of two processors have no ratio. Needs diffusers, transformers and accelerate (extra ``test``),
and Linux.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "memory.json"
PAGE = ROOT / "docs" / "memory.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
LIBRARIES = ("sfumato", "diffusers")
SIZES = (512, 1024)
#: The first one is not named in the file of results.
DTYPES = ("bfloat16", "float32", "float16")
HEAD = (
    "| switch | sfumato: peak, time | diffusers: peak, time | sfumato / diffusers |",
    "|---|---|---|---|",
)
PARTS = {"step": "UNet step", "decode": "decoding", "picture": "picture in 1 step"}


def nothing(pipe: Any) -> None:
    """No switch."""


def channels_last(pipe: Any) -> None:
    """Another layout of feature maps in memory."""
    import torch

    for network in (pipe.unet, pipe.vae):
        network.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Case:
    """A switch: its name in the table, what is measured, how it is set, and who has it."""

    name: str
    part: str
    switch: Callable[[Any], Any]
    libraries: tuple[str, ...] = LIBRARIES


OURS = LIBRARIES[:1]
CASES = {
    case.name: case
    for case in (
        Case("no switch, step", "step", nothing),
        Case("attention slicing, half the heads", "step", lambda p: p.enable_attention_slicing()),
        Case("attention slicing, one head", "step", lambda p: p.enable_attention_slicing("max")),
        Case("fused projections", "step", lambda p: p.fuse_qkv_projections()),
        Case("channels last, step", "step", channels_last),
        Case("FreeU", "step", lambda p: p.enable_freeu(0.9, 0.2, 1.2, 1.4)),
        Case("no switch, decoding", "decode", nothing),
        Case("VAE tiling", "decode", lambda p: p.enable_vae_tiling()),
        Case("VAE tiling, blended", "decode", lambda p: p.vae.enable_tiling(blend=True), OURS),
        Case("channels last, decoding", "decode", channels_last),
        Case("no switch, picture", "picture", nothing),
        Case("model CPU offload", "picture", lambda p: p.enable_model_cpu_offload(), OURS),
        Case(
            "sequential CPU offload", "picture", lambda p: p.enable_sequential_cpu_offload(), OURS
        ),
    )
}


def peak_mib(reset: bool = False) -> float:
    """The most memory this process has had since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def processor() -> str:
    """The name of this machine's processor, as Linux has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def measure(library: str, case: Case, size: int, model: str, dtype: str) -> dict[str, Any]:
    """Seconds and peak of one case, in this process, and the processor's name."""
    import importlib

    import torch

    torch.set_num_threads(1)
    pipeline_class = importlib.import_module(library).StableDiffusionPipeline
    quiet = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    kind = getattr(torch, dtype)
    pipe = pipeline_class.from_pretrained(model, torch_dtype=kind, **quiet)
    pipe.set_progress_bar_config(disable=True)
    case.switch(pipe)
    torch.manual_seed(0)
    sample = torch.randn(2, 4, size // 8, size // 8, dtype=kind)
    text = torch.randn(2, 77, 768, dtype=kind)
    peak_mib(reset=True)
    started = time.process_time()
    with torch.no_grad():
        if case.part == "step":
            pipe.unet(sample, 500, text)
        elif case.part == "decode":
            pipe.vae.decode(sample[:1])
        else:
            pipe("a boat", height=size, width=size, num_inference_steps=1, output_type="pt")
    seconds = time.process_time() - started
    return {"seconds": seconds, "peak_mib": peak_mib(), "machine": processor()}


def in_a_child(library: str, case: Case, size: int, model: str, dtype: str) -> dict[str, Any]:
    """`measure` in a process of its own."""
    words = ["--child", library, "--case", case.name, "--size", str(size), "--model", model]
    words += ["--dtype", dtype]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.switches", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def noted() -> dict[str, Any]:
    """The results of all runs so far: by case, size and library."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def row_name(case: str, dtype: str) -> str:
    """What the rows of a case are called."""
    return case if dtype == DTYPES[0] else f"{case}, {dtype}"


def note(case: str, size: int, library: str, found: dict[str, Any]) -> None:
    """Add a result to those in the file at once, so that runs beside each other lose none."""
    results = noted()
    results.setdefault(case, {}).setdefault(str(size), {})[library] = found
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def write_model(place: Path) -> str:
    """A folder with random weights."""
    import torch

    from benchmarks.whole_picture import our_pipeline

    our_pipeline(torch.bfloat16).save_pretrained(place)
    return str(place)


def tables_of(results: dict[str, Any]) -> list[str]:
    """A table in Markdown for each size, type and processor, with a line per case."""
    tables: dict[tuple[str, str, str], list[str]] = {}
    for dtype in DTYPES:
        for case in CASES.values():
            for size, found in results.get(row_name(case.name, dtype), {}).items():
                key = (size, dtype, _machines(found))
                tables.setdefault(key, []).append(f"| {_label(case)} | {_row(found)} |")
    lines: list[str] = []
    for (size, dtype, machines), rows in sorted(tables.items(), key=lambda item: int(item[0][0])):
        lines += [f"{size}x{size} pixels, {dtype}, {machines}:", "", *HEAD, *rows, ""]
    return lines


def _label(case: Case) -> str:
    if "no switch" in case.name:
        return f"{case.name.partition(',')[0]} ({PARTS[case.part]})"
    return case.name


def _machines(found: dict[str, Any]) -> str:
    """The processors that measured one case."""
    machines = {one.get("machine", "processor not noted") for one in found.values()}
    return "; ".join(sorted(machines))


def _row(found: dict[str, Any]) -> str:
    """The cells of one line after the first."""
    both = [found.get(library) for library in LIBRARIES]
    ratio = "-"
    ours, theirs = both
    if ours and theirs and ours.get("machine") == theirs.get("machine"):
        pairs = (ours[key] / theirs[key] for key in ("peak_mib", "seconds"))
        ratio = ", ".join(f"{value:.2f}" for value in pairs)
    return " | ".join([*map(_cell, both), ratio])


def _cell(found: dict[str, Any] | None) -> str:
    return "-" if found is None else f"{found['peak_mib']:.0f} MiB, {found['seconds']:.1f} s"


def missing(results: dict[str, Any]) -> list[str]:
    """A sentence about the rows that no type has for each library that has the switch."""

    def measured(case: Case, size: int) -> bool:
        rows = (results.get(row_name(case.name, dtype), {}) for dtype in DTYPES)
        return any(set(case.libraries) <= set(row.get(str(size), {})) for row in rows)

    absent = [
        f"{case.name} at {size}"
        for size in SIZES
        for case in CASES.values()
        if not measured(case, size)
    ]
    return [f"Not measured, or not for both: {'; '.join(absent)}.", ""] if absent else []


def write_page(results: dict[str, Any]) -> None:
    """Put the tables between their marks in the page."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = "\n".join([*tables_of(results), *missing(results)])
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}", "utf-8")


def main() -> None:
    """Measure, note the results, write and print the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--case", action="append", choices=CASES, help="all, if none is named")
    parser.add_argument("--size", action="append", type=int, help="512 and 1024, if none is given")
    parser.add_argument("--model", help="a folder to load; random weights, if none is given")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--library", action="append", choices=LIBRARIES)
    parser.add_argument("--table", action="store_true", help="write the tables and measure nothing")
    parser.add_argument("--child", choices=LIBRARIES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    chosen = [CASES[name] for name in arguments.case or CASES]
    sizes, dtype = arguments.size or SIZES, arguments.dtype
    if arguments.child:
        print(json.dumps(measure(arguments.child, chosen[0], sizes[0], arguments.model, dtype)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or (None if arguments.table else write_model(Path(folder) / "sd"))
        for size in () if arguments.table else sizes:
            for case in chosen:
                for library in arguments.library or LIBRARIES:
                    if library in case.libraries:
                        found = in_a_child(library, case, size, str(model), dtype)
                        note(row_name(case.name, dtype), size, library, found)
                        print(
                            f"{row_name(case.name, dtype)}, {size}, {library}: {found}", flush=True
                        )
    write_page(noted())
    print("\n".join(tables_of(noted())))


if __name__ == "__main__":
    main()
