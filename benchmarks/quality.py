"""How near few steps and savings come to the converged picture, and what they cost.

    python -m benchmarks.quality

Samplers without fresh noise all solve one equation. Their distance in latents to where they lead
(root mean square, relative to the spread of the latents, mean over prompts) is the price of few
calls of the network; a saving's price is measured in the same way. diffusers' default, 50 steps of
PNDM, stands beside them. The times are those of the processor on the embedded model, relative to
a call without savings. Writes the tables of docs/speed.md, between its two marks, from which the
presets of `sfumato.pipelines.quality` were chosen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sfumato
from sfumato import DeepCache, StableDiffusionPipeline, TextGate, TokenMerging
from sfumato.assets import embedded_model_path
from sfumato.pipelines.quality import QUALITIES
from sfumato.pipelines.sampler_names import find_sampler, find_schedule, scheduler_for

ROOT = Path(__file__).parents[1]
PAGE, PROMPTS = ROOT / "docs" / "speed.md", ROOT / "recipes" / "prompts-48.txt"
MARKS = "<!-- The figures below are written by `{}`. -->", "<!-- The end of the figures. -->"
STEPS = (6, 8, 10, 12, 14, 17, 20, 30)
CONVERGED = ("DPM++ 2M", "Karras", 200)
CANDIDATES = (
    ("LMS", "Karras"), ("LMS", "Align Your Steps"), ("DPM++ 2M", "Karras"),
    ("DPM++ 2M", "SGM Uniform"), ("DPM++ 2M", "Align Your Steps"), ("DEIS", "Karras"),
    ("DEIS", "Uniform"), ("UniPC", "Karras"), ("UniPC bh2", "Karras"), ("DDIM", "SGM Uniform"),
)  # fmt: skip
SAVINGS: tuple[tuple[str, Any], ...] = (
    ("none", ()),
    ("`DeepCache(2)`", DeepCache(2)),
    ("`DeepCache(3)`", DeepCache(3)),
    ("`DeepCache(2, start=0.3)`", DeepCache(2, start=0.3)),
    ("`TokenMerging(0.25)`", TokenMerging(0.25)),
    ("`TokenMerging(0.5)`", TokenMerging(0.5)),
    ("`TextGate(0.5)`", TextGate(0.5)),
    ("`TextGate(0.8)`", TextGate(0.8)),
)


class Studio:
    """The embedded model, some prompts, and where their pictures lead."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.pipe: Any = StableDiffusionPipeline.from_pretrained(embedded_model_path())
        self.pipe.set_progress_bar_config(disable=True)
        self.config = self.pipe.scheduler.config
        self.prompts = list(prompts)
        self.use(*CONVERGED[:2])
        self.converged = self.draw(CONVERGED[2])

    def use(self, sampler: str, schedule: str) -> None:
        found = find_sampler(sampler)[0]
        name, options = scheduler_for(found, find_schedule(schedule, found))
        self.pipe.scheduler = getattr(sfumato, name).from_config(self.config, **options)

    def use_default(self) -> None:
        """diffusers' default scheduler."""
        self.pipe.scheduler = sfumato.PNDMScheduler.from_config(self.config, skip_prk_steps=True)

    def draw(self, steps: int, **options: Any) -> Tensor:
        seeds = [torch.Generator().manual_seed(seed) for seed in range(len(self.prompts))]
        return self.pipe(
            self.prompts, num_inference_steps=steps, guidance_scale=4.0, generator=seeds,
            output_type="latent", **options,
        ).images  # fmt: skip

    def distance(self, latents: Tensor) -> float:
        error = (latents - self.converged).flatten(1).square().mean(1).sqrt()
        return (error / self.converged.flatten(1).std(1)).mean().item()


def curves(studio: Studio) -> list[str]:
    """The table of samplers over steps."""
    lines = [
        "| sampler | schedule | " + " | ".join(f"{n} steps" for n in STEPS) + " |",
        "|---|---|" + "---:|" * len(STEPS),
    ]
    for sampler, schedule in CANDIDATES:
        studio.use(sampler, schedule)
        cells = [f"{studio.distance(studio.draw(n)):.3f}" for n in STEPS]
        lines.append(f"| {sampler} | {schedule} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def presets(studio: Studio) -> list[str]:
    """The table of presets, beside diffusers' default."""
    lines = ["| preset | sampler | calls | distance |", "|---|---|---:|---:|"]
    for quality in QUALITIES.values():
        studio.use(quality.sampler, quality.schedule)
        found = studio.distance(studio.draw(quality.steps))
        name = f"{quality.sampler} {quality.schedule}"
        lines.append(f"| `{quality.name}` | {name} | {quality.steps} | {found:.3f} |")
    studio.use_default()
    lines.append(f"| diffusers' default | PNDM | 51 | {studio.distance(studio.draw(50)):.3f} |")
    return lines


def savings(studio: Studio, steps: int) -> list[str]:
    """The table of savings, with one sampler."""
    studio.use(*CONVERGED[:2])
    lines = ["| saving | distance | time |", "|---|---:|---:|"]
    whole = 0.0
    for name, saving in SAVINGS:
        begin = time.process_time()
        found = studio.distance(studio.draw(steps, savings=saving or None))
        seconds = time.process_time() - begin
        whole = whole or seconds
        lines.append(f"| {name} | {found:.3f} | {seconds / whole:.2f} |")
        print(lines[-1], flush=True)
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--prompts", type=int, default=8, help="how many of the 48")
    parser.add_argument("--saving-steps", type=int, default=30, help="steps of the savings' table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = [line.strip() for line in PROMPTS.read_text("utf-8").splitlines()]
    texts = [line for line in lines if line and not line.startswith("#")]
    studio = Studio(texts[:: max(1, len(texts) // options.prompts)][: options.prompts])
    about = f"{len(studio.prompts)} prompts, guidance 4; distances are to {CONVERGED[0]}"
    parts = [
        f"{about} ({CONVERGED[1]}) of {CONVERGED[2]} steps.", "",
        *presets(studio), "", *curves(studio), "",
        f"Savings in {options.saving_steps} steps of {CONVERGED[0]} ({CONVERGED[1]}):", "",
        *savings(studio, options.saving_steps),
    ]  # fmt: skip
    write("\n".join(parts))


def write(tables: str) -> None:
    """Put the tables between the page's marks."""
    first, last = MARKS[0].format("python -m benchmarks.quality"), MARKS[1]
    text = PAGE.read_text("utf-8")
    before, rest = text.split(first, 1)
    after = rest.split(last, 1)[1]
    PAGE.write_text(f"{before}{first}\n\n{tables}\n\n{last}{after}", "utf-8")


if __name__ == "__main__":
    main()
