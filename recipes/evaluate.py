"""Score a model on the pictures it learned from: does it draw the thing that it was asked for?

    python recipes/evaluate.py --data data/emoji --things 100 --json scores.json

For things drawn by chance, and for each style, the model draws the canonical caption ("a red apple,
flat style"). The drawing is looked up among the training pictures of *all* things in that style
(`retrieval.py` says how pictures are compared). Reported are how often the right thing comes first,
how often it is among the first five, and how often the nearest picture of all styles has the style
that was asked for. `plain` asks without a style word and expects the default style.
`--reconstructions` scores the autoencoder's copies of the true pictures in the drawings' place:
the most that any training of the second stage can reach.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from drawing import add_draw_arguments, draw_all, draw_options, load_pipeline
from emoji_words import STYLES, indefinite
from PIL import Image
from retrieval import Gallery

PLAIN = "plain"
DEFAULT_STYLE = next(style.word for style in STYLES if style.default)


@dataclass(frozen=True)
class Result:
    """One drawing: what was asked for, and where the right picture came among all."""

    prompt: str
    label: str
    asked: str
    """A style word, or `plain`."""
    rank: int
    nearest: str
    nearest_style: str

    @property
    def style(self) -> str:
        """The style that the drawing should have."""
        return DEFAULT_STYLE if self.asked == PLAIN else self.asked


@dataclass(frozen=True)
class Galleries:
    """The training pictures: one gallery for each style, and one of all of them."""

    rows: dict[tuple[str, str], Path]
    """Picture of a (label, style)."""
    by_style: dict[str, Gallery]
    everything: Gallery

    @classmethod
    def read(cls, data: Path) -> Galleries:
        """From the image folder that `emoji_dataset.py` writes."""
        lines = (data / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
        rows = {(e["label"], e["style"]): data / e["file_name"] for e in entries}
        images = {key: _read_image(path) for key, path in rows.items()}
        by_style = {}
        for word in dict.fromkeys(style for _, style in rows):
            chosen = {label: image for (label, style), image in images.items() if style == word}
            by_style[word] = Gallery.of(list(chosen), list(chosen.values()))
        names = [f"{style}/{label}" for label, style in rows]
        return cls(rows, by_style, Gallery.of(names, list(images.values())))

    def score(self, image: Image.Image, prompt: str, label: str, asked: str) -> Result:
        """Look a drawing up."""
        style = DEFAULT_STYLE if asked == PLAIN else asked
        gallery = self.by_style[style]
        return Result(
            prompt,
            label,
            asked,
            rank=gallery.rank(image, label),
            nearest=gallery.nearest(image),
            nearest_style=self.everything.nearest(image).split("/")[0],
        )


def _read_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def prompts_for(labels: Sequence[str], asked: Sequence[str]) -> list[tuple[str, str, str]]:
    """`(prompt, label, asked style)` for every thing in every style."""
    return [
        (indefinite(label) + ("" if style == PLAIN else f", {style} style"), label, style)
        for style in asked
        for label in labels
    ]


def summary(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Shares for each asked style and for all together."""
    groups = {asked: [r for r in results if r.asked == asked] for asked in _asked(results)}
    groups["all"] = list(results)
    return {
        name: {
            "pictures": len(group),
            "top1": _share(r.rank == 1 for r in group),
            "top5": _share(r.rank <= 5 for r in group),
            "median_rank": float(np.median([r.rank for r in group])),
            "style": _share(r.nearest_style == r.style for r in group),
        }
        for name, group in groups.items()
    }


def _asked(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.asked for result in results))


def _share(hits: Any) -> float:
    return round(float(np.mean(list(hits))), 4)


def table(scores: dict[str, dict[str, float]]) -> str:
    """The summary as text."""
    lines = [f"{'asked for':12}{'pictures':>9}{'top-1':>8}{'top-5':>8}{'median':>8}{'style':>8}"]
    for name, s in scores.items():
        lines.append(
            f"{name:12}{s['pictures']:>9}{s['top1']:>8.1%}{s['top5']:>8.1%}"
            f"{s['median_rank']:>8.0f}{s['style']:>8.1%}"
        )
    return "\n".join(lines)


def reconstruct(pipe: Any, paths: Sequence[Path], batch_size: int) -> list[Image.Image]:
    """The autoencoder's copies of pictures."""
    import torch

    copies: list[Image.Image] = []
    for start in range(0, len(paths), batch_size):
        images = [_read_image(path) for path in paths[start : start + batch_size]]
        pixels = pipe.image_processor.preprocess(images).to(pipe.vae.dtype)
        with torch.no_grad():
            decoded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mode()).sample
        copies += pipe.image_processor.postprocess(decoded.float(), output_type="pil")
    return copies


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Score a model by retrieval.")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="image folder")
    parser.add_argument("--things", type=int, default=100, help="number of things drawn by chance")
    parser.add_argument(
        "--styles",
        default=",".join([*(style.word for style in STYLES), PLAIN]),
        help="style words to ask for, with commas",
    )
    parser.add_argument("--json", type=Path, help="file for the scores and every single result")
    parser.add_argument(
        "--reconstructions", action="store_true", help="score the autoencoder's copies"
    )
    add_draw_arguments(parser)
    parsed = parser.parse_args(argv)
    options = draw_options(parsed)
    galleries = Galleries.read(parsed.data)
    labels = sorted({label for label, _ in galleries.rows})
    chosen = random.Random(options.seed).sample(labels, min(parsed.things, len(labels)))
    asked = [
        word for word in parsed.styles.split(",") if not (parsed.reconstructions and word == PLAIN)
    ]
    jobs = prompts_for(chosen, asked)
    pipe = load_pipeline(parsed.model)
    if parsed.reconstructions:
        jobs = [job for job in jobs if job[2] != PLAIN]  # the same pictures as the default style
        paths = [galleries.rows[label, style] for _, label, style in jobs]
        images = reconstruct(pipe, paths, options.batch_size)
    else:
        images = draw_all(pipe, [prompt for prompt, _, _ in jobs], options)
    results = [galleries.score(image, *job) for image, job in zip(images, jobs, strict=True)]
    scores = summary(results)
    print(table(scores))
    if parsed.json:
        report = {
            "settings": asdict(options),
            "scores": scores,
            "results": list(map(asdict, results)),
        }
        parsed.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
