"""What each way to quantise costs in quality, and what it saves in time and memory.

    python -m benchmarks.quantization                    # quality, on the embedded model
    python -m benchmarks.quantization --model FOLDER     # and time and memory, on a large model

Quality: pictures of the embedded model against those in float32 from the same seeds; PSNR in dB,
mean and worst, and the distance of the latents, root mean square, relative. Time: a UNet step with
guidance at 512x512, all kinds loaded together and asked in turn, so that ratios hold where absolute
times drift. Memory: a process of its own loads the pipeline and draws a picture in one step; peaks
of the resident set after loading, after the step, and at the end. Writes the tables of
docs/quantization.md, between its two marks. Memory is measured on Linux alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import StableDiffusionPipeline
from sfumato.assets import embedded_model_path
from sfumato.models.unet import UNet2DConditionModel
from sfumato.quantization.names import KINDS
from sfumato.quantization.tensor import stored

ROOT = Path(__file__).parents[1]
PAGE, PROMPTS = ROOT / "docs" / "quantization.md", ROOT / "recipes" / "prompts-48.txt"
MARKS = "<!-- The figures below are written by `{}`. -->", "<!-- The end of the figures. -->"
PLAIN = "bfloat16"
NAMES = (PLAIN, *KINDS)


def options_of(name: str) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for a row of the tables."""
    return {"torch_dtype": torch.bfloat16, **({} if name == PLAIN else {"quantization": name})}


# Quality


def drawn(
    pipe: StableDiffusionPipeline, prompts: Sequence[str], steps: int
) -> tuple[Tensor, Tensor]:
    """Pictures in 0..1 and their latents, each from a seed of its own."""
    pipe.set_progress_bar_config(disable=True)
    pictures, latents = [], []
    for seed, prompt in enumerate(prompts):
        call: dict[str, Any] = {"num_inference_steps": steps, "seeds": seed}
        result: Any = pipe(prompt, output_type="latent", **call)
        latents.append(result.images.float())
        shown: Any = pipe(prompt, output_type="pt", **call)
        pictures.append(shown.images.float())
    return torch.cat(pictures), torch.cat(latents)


def quality(prompts: Sequence[str], steps: int) -> list[dict[str, Any]]:
    """A row for each way, against float32."""
    load = StableDiffusionPipeline.from_pretrained
    model = embedded_model_path()
    exact, exact_latents = drawn(load(model, torch_dtype=torch.float32), prompts, steps)
    rows = []
    for name in NAMES:
        pictures, latents = drawn(load(model, **options_of(name)), prompts, steps)
        ratios = -10 * torch.log10((pictures - exact).square().mean((1, 2, 3)))
        distance = (latents - exact_latents).square().mean((1, 2, 3)).sqrt()
        distance /= exact_latents.square().mean((1, 2, 3)).sqrt()
        rows.append(
            {
                "weights": name,
                "PSNR": f"{float(ratios.mean()):.1f} dB",
                "worst": f"{float(ratios.min()):.1f} dB",
                "distance of latents": f"{float(distance.mean()):.3f}",
            }
        )
    return rows


# Time and memory


def times(model: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of UNet steps, all ways in turn; the first round, which warms up, does not count."""
    load = UNet2DConditionModel.from_pretrained
    networks = {name: load(model, subfolder="unet", **options_of(name)) for name in NAMES}
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(rounds + 1):
        for name, network in networks.items():
            found[name].append(step(network))
    return {name: seconds[1:] for name, seconds in found.items()}


@torch.inference_mode()
def step(network: UNet2DConditionModel) -> float:
    """Seconds of one call as for a picture of 512x512 with guidance."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 64, 64, generator=generator).to(network.dtype)
    context = torch.randn(2, 77, network.config.cross_attention_dim, generator=generator)
    start = time.perf_counter()
    network(latents, 500, context.to(network.dtype))
    return time.perf_counter() - start


def memory(model: Path, name: str) -> dict[str, int]:
    """Peaks of a process of its own, in MiB."""
    words = [sys.executable, "-m", "benchmarks.quantization", "--model", model, "--draw", name]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def draw_and_tell(model: Path, name: str) -> None:
    """Draw a picture in one step; print this process's peaks on the way."""
    pipe = StableDiffusionPipeline.from_pretrained(model, **options_of(name))
    pipe.set_progress_bar_config(disable=True)
    found = {"loaded": peak(), "weights": weights_of(pipe)}
    pipe("a cat", num_inference_steps=1, height=512, width=512, output_type="latent")
    found["step"] = peak()
    pipe("a cat", num_inference_steps=1, height=512, width=512)
    print(json.dumps(found | {"picture": peak()}))


def peak() -> int:
    """The most memory that this process ever had, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def weights_of(pipe: StableDiffusionPipeline) -> int:
    """The weights of all networks, in MiB."""
    networks: Any = (pipe.unet, pipe.vae, pipe.text_encoder)
    return sum(t.nbytes for n in networks for t in stored(n.parameters())) // 2**20


def cost(model: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for each way: a step's time and the pipeline's memory."""
    seconds = times(model, rounds)
    rows = []
    for name in NAMES:
        pairs = zip(seconds[PLAIN], seconds[name], strict=True)
        ratio = statistics.median(plain / other for plain, other in pairs)
        peaks = memory(model, name)
        rows.append(
            {
                "weights": name,
                "UNet step": f"{statistics.median(seconds[name]):.2f} s",
                "faster": f"{ratio:.2f}x",
                "weights in memory": f"{peaks['weights']} MiB",
                "peak of loading": f"{peaks['loaded']} MiB",
                "of steps": f"{peaks['step']} MiB",
                "of decoding": f"{peaks['picture']} MiB",
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(tables: dict[str, str]) -> None:
    """Put tables into the page; those that were not measured stay."""
    page = PAGE.read_text(encoding="utf-8")
    for option, text in tables.items():
        mark = MARKS[0].format(f"python -m benchmarks.quantization{option}")
        before, begin, rest = page.partition(mark)
        _, end, after = rest.partition(MARKS[1])
        page = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    PAGE.write_text(page, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--model", type=Path, help="a model in diffusers' layout, for time, memory")
    parser.add_argument("--prompts", type=int, default=12, help="how many pictures")
    parser.add_argument("--steps", type=int, default=20, help="of each")
    parser.add_argument("--rounds", type=int, default=3, help="of UNet steps")
    parser.add_argument("--draw", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.draw:
        draw_and_tell(options.model, options.draw)
        return
    found = {}
    if options.model is not None:
        found[" --model FOLDER"] = table(cost(options.model, options.rounds))
    else:
        prompts = PROMPTS.read_text(encoding="utf-8").splitlines()[: options.prompts]
        found[""] = table(quality(prompts, options.steps))
    write(found)
    print("\n\n".join(found.values()))


if __name__ == "__main__":
    main()
