"""Draw many prompts with one model: what `sheet.py` and `evaluate.py` share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class DrawOptions:
    """How every picture is drawn. Picture number i uses the seed `seed + i`, whatever the batch,
    so one picture of a long list can be drawn again on its own."""

    steps: int = 25
    guidance_scale: float = 4.0
    seed: int = 0
    batch_size: int = 12


def add_draw_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line options for `DrawOptions` and the model."""
    default = DrawOptions()
    parser.add_argument("--model", type=Path, help="model folder (default: the embedded model)")
    parser.add_argument("--steps", type=int, default=default.steps, help="denoising steps")
    parser.add_argument(
        "--guidance-scale", type=float, default=default.guidance_scale, help="pull of the prompt"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of the first picture")
    parser.add_argument(
        "--batch-size", type=int, default=default.batch_size, help="pictures drawn at a time"
    )


def draw_options(parsed: argparse.Namespace) -> DrawOptions:
    """`DrawOptions` out of the parsed command line."""
    return DrawOptions(parsed.steps, parsed.guidance_scale, parsed.seed, max(1, parsed.batch_size))


def load_pipeline(model: Path | None) -> Any:
    """The pipeline in a model folder, quiet; the model inside the package by default."""
    from sfumato import StableDiffusionPipeline
    from sfumato.assets import embedded_model_path

    pipe = StableDiffusionPipeline.from_pretrained(model or embedded_model_path())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_all(pipe: Any, prompts: Sequence[str], options: DrawOptions) -> Iterator[Image.Image]:
    """One picture for each prompt, in order, counted on stderr.

    `pipe` is a `StableDiffusionPipeline`, or anything that is called like one.
    """
    import torch

    for start in range(0, len(prompts), options.batch_size):
        batch = list(prompts[start : start + options.batch_size])
        seeds = range(options.seed + start, options.seed + start + len(batch))
        output = pipe(
            batch,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        )
        yield from output.images
        print(f"\r{start + len(batch)}/{len(prompts)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
