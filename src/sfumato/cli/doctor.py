"""``sfumato doctor``: is everything here that drawing needs, and what to do where it is not."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from sfumato import __version__
from sfumato.assets import MANIFEST, embedded_model_path, verify_manifest
from sfumato.cli.backends import DTYPE_SWITCH
from sfumato.cli.console import one_line
from sfumato.errors import InputError, SfumatoError
from sfumato.native.library import describe, feature_names, library, switched_off
from sfumato.runtime.allocator import keep_memory
from sfumato.runtime.machine import this_machine

app = typer.Typer(add_completion=False, rich_markup_mode=None)

#: Extra, the package it brings, what it is for.
EXTRAS = (
    ("hub", "huggingface_hub", "loading models by their hub name"),
    ("openvino", "openvino", "computing large models with OpenVINO"),
    ("jax", "jax", "the pipeline in JAX"),
    ("yaml", "pyyaml", "reading `original_config` in YAML"),
    ("recipes", "resvg_py", "building the data set of the embedded model"),
)
MINIMUM_TORCH = (2, 10)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        state: ``"ok"``, ``"note"`` (works, could be better) or ``"fail"``.
        detail: what was found.
        remedy: what to do about it; empty when it is ok.
    """

    name: str
    state: str
    detail: str
    remedy: str = ""


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Check this installation and machine; paste the report into an issue.

    The exit code is 1 if something fails.
    """
    findings = list(examine())
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(f"{finding.state:<5} {finding.name:<15} {one_line(finding.detail)}")
            if finding.remedy:
                print(f"{'':<22}{finding.remedy}")
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    """All findings, in the order of the report."""
    yield Finding(
        name="sfumato", state="ok", detail=f"{__version__} at {Path(__file__).parents[1]}"
    )
    yield Finding(
        name="python",
        state="ok",
        detail=f"{platform.python_version()} on {platform.platform()} at {sys.executable}",
    )
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (_torch, _cpu, _model, _extras, _folder)
    for check in checks:
        yield from check()


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a broken installation can raise anything here
        yield Finding(
            name="torch",
            state="fail",
            detail=f"cannot be imported: {error}",
            remedy="pip install torch",
        )
        return
    numbers = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    recent = numbers >= MINIMUM_TORCH
    yield Finding(
        name="torch",
        state="ok" if recent else "fail",
        detail=f"{torch.__version__}, CPU code for {torch.backends.cpu.get_cpu_capability()}",
        remedy="" if recent else "pip install 'torch>=2.10' (older ones have security holes)",
    )
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    devices += ["MPS"] if torch.backends.mps.is_available() else []
    yield Finding(name="accelerator", state="ok", detail=", ".join(devices) or "none, and fine so")
    yield _threads(torch.get_num_threads())


def _threads(used: int) -> Finding:
    usable = this_machine().processors
    few = used == 1 and usable > 1
    return Finding(
        name="threads",
        state="note" if few else "ok",
        detail=f"{used} of {usable} usable processors",
        remedy="Drawing may be faster with --threads, or without OMP_NUM_THREADS." if few else "",
    )


def _cpu() -> Iterator[Finding]:
    machine = this_machine()
    found = ", ".join(machine.instructions) or "no vector units known here"
    speed = "computed in hardware" if machine.fast_bfloat16 else "emulated"
    kind = "bfloat16" if machine.fast_bfloat16 else "float32"
    yield Finding(name="cpu", state="ok", detail=found)
    yield Finding(
        name="precision",
        state="ok",
        detail=f"{os.environ.get(DTYPE_SWITCH, kind)} for large models, float32 for small ones"
        f" (bfloat16 is {speed} here; --dtype and {DTYPE_SWITCH} choose another)",
    )
    yield Finding(name="memory", state="ok", detail=keep_memory())
    yield from _kernels()


def _kernels() -> Iterator[Finding]:
    try:
        detail, by = describe(), ", ".join(feature_names())
    except InputError as error:
        yield Finding(name="kernels", state="fail", detail=error.message, remedy=error.hint or "")
        return
    missing = library() is None and not switched_off()
    yield Finding(
        name="kernels",
        state="note" if missing else "ok",
        detail=f"{detail} (SFUMATO_KERNELS chooses)",
        remedy="Install sfumato again where there is a C compiler." if missing else "",
    )
    yield Finding(
        name="backend",
        state="ok",
        detail=f"numpy ({f'compiled kernels for {by}' if by else 'no compiled kernels'}) for small"
        " pictures of the embedded model, torch for all else (--backend chooses)",
    )


def _model() -> Iterator[Finding]:
    try:
        folder = embedded_model_path()
        files = verify_manifest(folder)
    except SfumatoError as error:
        yield Finding(
            name="embedded model",
            state="fail",
            detail=error.message,
            remedy=error.hint or f"Reinstall sfumato; {MANIFEST} could not be read.",
        )
        return
    size = sum((folder / name).stat().st_size for name in files)
    detail = f"{len(files)} files, {size / 1e6:.0f} MB, all as they were made"
    yield Finding(name="embedded model", state="ok", detail=detail)


def _extras() -> Iterator[Finding]:
    for extra, package, purpose in EXTRAS:
        try:
            version = metadata.version(package)
            yield Finding(name=f"extra {extra}", state="ok", detail=f"{package} {version}")
        except metadata.PackageNotFoundError:
            yield Finding(
                name=f"extra {extra}",
                state="note",
                detail=f"not installed (for {purpose})",
                remedy=f"pip install 'sfumato[{extra}]'",
            )


def _folder() -> Iterator[Finding]:
    here = Path.cwd()
    writable = os.access(here, os.W_OK)
    yield Finding(
        name="this folder",
        state="ok" if writable else "note",
        detail=f"{here} {'takes' if writable else 'does not take'} pictures",
        remedy="" if writable else "Say where pictures go with --output.",
    )
