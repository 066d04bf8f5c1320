"""Loading Stable Diffusion 1.5's size in 16 bit: time and memory, sfumato beside diffusers.

    python -m benchmarks.loading --rounds 5 [--keep FOLDER]

Random weights are written as a folder, a ``.safetensors`` and a ``.ckpt`` file of 2.1 GB each.
Every measurement is a process of its own, and contenders take turns, so both find the files in the
system's cache. Measured are the call that loads once all modules are imported, the same with the
imports, and the call with the first step of the UNet on small latents, which is where a mapped file
is really read. sfumato looks for NaN while it loads; diffusers does not.

Times are the processor's, on one thread, as other programs on the machine do not count into them.

Memory is the peak of the resident set (``VmHWM``) above what the process held before the call, over
the size of the weights. That counts every page of a mapped file once it was touched, although the
system can drop such pages at any time; what it cannot drop is listed as anonymous.

Needs diffusers, transformers and accelerate (extra ``test``), Linux, and 7 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Names of the three forms, and of what is in the folder of the measurement.
FORMS = {"folder": "folder", ".safetensors": "model.safetensors", ".ckpt": "model.ckpt"}
LIBRARIES = ("sfumato", "diffusers")


def write_models(place: Path) -> None:
    """The same random 16-bit weights in all three forms, unless they are there already."""
    if all((place / name).exists() for name in FORMS.values()):
        return
    import torch

    from sfumato.checkpoints.tensors import read_safetensors

    pipe = random_pipeline()
    pipe.save_pretrained(place / FORMS["folder"])
    pipe.save_single_file(place / FORMS[".safetensors"])
    state = read_safetensors(place / FORMS[".safetensors"], check_finite=False)
    torch.save({"state_dict": state}, place / FORMS[".ckpt"])


def write_folder(place: Path) -> None:
    """Random 16-bit weights as a folder."""
    random_pipeline().save_pretrained(place)


def random_pipeline() -> Any:
    """Stable Diffusion 1.5's networks with random 16-bit weights."""
    import torch

    from sfumato import CLIPTokenizer, PNDMScheduler, StableDiffusionPipeline
    from sfumato.checkpoints.original.families import family
    from sfumato.checkpoints.original.loading import network_class

    published = family("stable-diffusion-v1")
    networks: dict[str, Any] = {}
    for name in ("unet", "vae", "text_encoder"):
        model_class: Any = network_class(name)
        torch.manual_seed(0)
        networks[name] = model_class(getattr(published, name)).half().eval()
    scheduler = {k: v for k, v in published.scheduler.items() if k != "_class_name"}
    return StableDiffusionPipeline(
        **networks,
        tokenizer=CLIPTokenizer(**published.tokenizer),
        scheduler=PNDMScheduler(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def memory() -> dict[str, int]:
    """The kernel's account of this process in bytes: now, its peak, and without files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    table = {line.partition(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    return {name: int(table[name]) * 1024 for name in ("VmRSS", "VmHWM", "RssAnon")}


def measure(library: str, form: str, place: Path) -> dict[str, float]:
    """Load once, in this process, and take the first step."""
    started = time.process_time()
    import torch

    options: dict[str, Any] = {"torch_dtype": torch.float16}
    if library == "sfumato":
        from sfumato import CLIPTextModel, CLIPTokenizer, PNDMScheduler  # noqa: F401
        from sfumato import StableDiffusionPipeline as Pipeline
    else:
        from diffusers import StableDiffusionPipeline as Pipeline
        from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

        options["config"] = str(place / FORMS["folder"])
    torch.set_num_threads(1)
    before, imported = memory(), time.process_time()
    if form == "folder":
        options.pop("config", None)
        pipe: Any = Pipeline.from_pretrained(place / FORMS[form], **options)
    else:
        pipe = Pipeline.from_single_file(str(place / FORMS[form]), **options)
    loaded, after = time.process_time(), memory()
    latents = torch.zeros(1, 4, 8, 8, dtype=torch.float16)
    text = torch.zeros(1, 77, 768, dtype=torch.float16)
    with torch.no_grad():
        pipe.unet(latents, 1, encoder_hidden_states=text)
    return {
        "load": loaded - imported,
        "with imports": loaded - started,
        "to first step": time.process_time() - imported,
        "peak": after["VmHWM"] - before["VmRSS"],
        "anonymous": after["RssAnon"] - before["RssAnon"],
        "peak with step": memory()["VmHWM"] - before["VmRSS"],
    }


def in_a_process(library: str, form: str, place: Path) -> dict[str, float]:
    """`measure` in a new process, whose imports find compiled modules as they usually do."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "benchmarks.loading", "--measure", library, form, str(place)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def size_of(path: Path) -> int:
    """Bytes of the weights."""
    files = path.rglob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


@contextmanager
def place_for(keep: Path | None) -> Iterator[Path]:
    """The folder for the models: the caller's, or one that is removed again."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def report(form: str, size: int, runs: dict[str, list[dict[str, float]]]) -> None:
    """Medians of one form, with the ratio of the times."""
    print(f"\n{form}, {size / 1e9:.2f} GB")
    for key in runs["sfumato"][0]:
        mine, other = (statistics.median(run[key] for run in runs[name]) for name in LIBRARIES)
        if "peak" in key or key == "anonymous":
            print(f"  {key:16}{mine / size:>8.3f} x {other / size:>11.3f} x   of the size")
        else:
            print(f"  {key:16}{mine:>8.3f} s {other:>11.3f} s   ratio {mine / other:.2f}")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="where the models are, or stay")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        library, form, place = arguments.measure
        print(json.dumps(measure(library, form, Path(place))))
        return
    with place_for(arguments.keep) as place:
        write_models(place)
        print(f"{'':18}{'sfumato':>10}{'diffusers':>14}   medians of {arguments.rounds}")
        for form in arguments.forms:
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in LIBRARIES}
            for count in range(arguments.rounds + 1):
                for library in LIBRARIES:
                    measured = in_a_process(library, form, place)
                    if count:  # the first one fills the caches
                        runs[library].append(measured)
            report(form, size_of(place / FORMS[form]), runs)


if __name__ == "__main__":
    main()
