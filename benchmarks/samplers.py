"""The same prompt and noise over samplers and step counts: time, and distance to where they lead.

    python -m benchmarks.samplers

Samplers that add no noise all solve one equation, so that there is one picture that they come to
with enough steps. Their distance to it, in latents, is what few steps cost. Writes the tables of
docs/samplers.md, between its two marks, and the sheet that the page shows. With another model
(``--model FOLDER``), prompt or seed the page says so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

import sfumato
from sfumato import StableDiffusionPipeline
from sfumato.assets import embedded_model_path
from sfumato.pipelines.sampler_names import find_sampler, find_schedule, scheduler_for

ROOT = Path(__file__).parents[1]
PAGE, SHEET = ROOT / "docs" / "samplers.md", ROOT / "docs" / "images" / "samplers.png"
MARKS = "<!-- The figures below are written by `{}`. -->", "<!-- The end of the figures. -->"
STEPS = (4, 8, 16, 32)
#: Where the others are measured from.
CONVERGED = ("DPM++ 2M", "Karras", 250)
STEADY = (
    ("Euler", "Karras"),
    ("Heun", "Karras"),
    ("DPM2", "Karras"),
    ("LMS", "Karras"),
    ("DPM++ 2M", "Karras"),
    ("DPM++ 2M", "SGM Uniform"),
    ("DPM++ 2M", "Align Your Steps"),
    ("DPM++ 2S", "Karras"),
    ("DEIS", "Karras"),
    ("UniPC", "Karras"),
    ("UniPC bh2", "Karras"),
    ("DDIM", "SGM Uniform"),
    ("PLMS", "Leading"),
)
NOISY = (
    ("Euler a", "Karras"),
    ("DPM2 a", "Karras"),
    ("DPM++ 2S a", "Karras"),
    ("DPM++ SDE", "Karras"),
    ("DPM++ 2M SDE", "Karras"),
    ("DPM++ 3M SDE", "Exponential"),
    ("SA-Solver", "Karras"),
)


@dataclass(frozen=True)
class Drawn:
    """One picture: its latents, calls of the network, and seconds of the processor to them."""

    latents: torch.Tensor
    calls: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is drawn with each sampler."""

    pipe: StableDiffusionPipeline
    prompt: str
    guidance: float
    seed: int

    def draw(self, name: str, schedule: str, steps: int) -> Drawn:
        """Draw it."""
        sampler = find_sampler(name)[0]
        class_name, options = scheduler_for(sampler, find_schedule(schedule, sampler))
        config = self.pipe.scheduler.config
        self.pipe.scheduler = getattr(sfumato, class_name).from_config(config, **options)
        calls: list[int] = []
        torch.manual_seed(self.seed)  # DPM++ SDE takes its path from here
        begun = time.process_time()
        result: Any = self.pipe(
            self.prompt,
            num_inference_steps=steps,
            guidance_scale=self.guidance,
            generator=torch.Generator().manual_seed(self.seed),
            output_type="latent",
            callback_on_step_end=lambda pipe, step, t, tensors: calls.append(step) or tensors,
        )
        return Drawn(result.images, len(calls), time.process_time() - begun)

    def decoded(self, latents: torch.Tensor) -> Image.Image:
        """The picture."""
        vae = self.pipe.vae
        with torch.no_grad():
            pixels = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(pixels, output_type="pil")[0]


def distance(latents: torch.Tensor, reference: torch.Tensor) -> float:
    """Root mean square of the difference, as a share of the reference's."""
    return float((latents - reference).norm() / reference.norm())


def table(rows: Sequence[tuple[str, str]], runs: dict[Any, Drawn], steps: Sequence[int]) -> str:
    """Markdown: calls, seconds, and the distance where ``CONVERGED`` is known to lead."""
    goal = runs.get(CONVERGED) if rows is STEADY else None
    what = "distance" if goal else "calls"
    lines = [f"| sampler | schedule | {' | '.join(f'{n} steps' for n in steps)} |"]
    lines.append("|---|---|" + "---:|" * len(steps))
    for name, schedule in rows:
        cells = []
        for n in steps:
            run = runs[name, schedule, n]
            first = f"{distance(run.latents, goal.latents):.3f}" if goal else str(run.calls)
            cells.append(f"{first}, {run.seconds:.1f}")
        lines.append(f"| {name} | {schedule} | {' | '.join(cells)} |")
    return f"Each cell: {what}, and seconds of the processor.\n\n" + "\n".join(lines)


def sheet(subject: Subject, runs: dict[Any, Drawn], steps: Sequence[int], side: int) -> Image.Image:
    """All pictures: a row for a sampler, a column for a number of steps."""
    rows, label = (*STEADY, *NOISY), 170
    whole = Image.new("RGB", (label + side * len(steps), 16 + side * len(rows)), "white")
    pen = ImageDraw.Draw(whole)
    for column, n in enumerate(steps):
        pen.text((label + side * column + 4, 2), f"{n} steps", fill="black")
    for line, (name, schedule) in enumerate(rows):
        top = 16 + side * line
        pen.text((4, top + side // 2 - 12), f"{name}\n{schedule}", fill="black")
        for column, n in enumerate(steps):
            picture = subject.decoded(runs[name, schedule, n].latents)
            whole.paste(picture.resize((side, side)), (label + side * column, top))
    return whole.quantize(128)


def write_page(page: Path, command: str, text: str) -> None:
    """Put the figures between the page's marks."""
    begin, end = MARKS[0].format(command), MARKS[1]
    old = page.read_text("utf-8")
    before = old[: old.index(MARKS[0].split("{", 1)[0])]
    after = old[old.index(end) :]
    page.write_text(f"{before}{begin}\n\n{text}\n\n{after}", "utf-8")


def main() -> None:
    """Draw, measure, write."""
    parser = argparse.ArgumentParser(description="Time and quality of samplers.")
    parser.add_argument("--model", type=Path, help="a folder; the embedded model if not given")
    parser.add_argument("--prompt", default="a red apple")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--side", type=int, default=72, help="of a picture on the sheet")
    options = parser.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained(options.model or embedded_model_path())
    pipe.set_progress_bar_config(disable=True)
    subject = Subject(
        pipe=pipe, prompt=options.prompt, guidance=options.guidance, seed=options.seed
    )
    cases = [CONVERGED, *((*row, n) for row in (*STEADY, *NOISY) for n in STEPS)]
    runs: dict[Any, Drawn] = {case: subject.draw(*case) for case in cases}
    sheet(subject, runs, STEPS, options.side).save(SHEET, optimize=True)
    name, schedule, steps = CONVERGED
    model = options.model.name if options.model else "the embedded model"
    text = (
        f'"{options.prompt}" with {model}, guidance {options.guidance:g}, seed {options.seed}.'
        f" Distances are to {name} ({schedule}) of {steps} steps.\n\n"
        f"Without noise. {table(STEADY, runs, STEPS)}\n\n"
        f"With noise, which leads every one to a picture of its own."
        f" {table(NOISY, runs, STEPS)}\n\n![The same prompt over samplers and step counts]"
        f"({SHEET.relative_to(PAGE.parent).as_posix()})"
    )
    write_page(PAGE, "python -m benchmarks.samplers", text)
    print(text)


if __name__ == "__main__":
    main()
