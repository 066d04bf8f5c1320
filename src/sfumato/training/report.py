"""What a run leaves for its owner: ``log.jsonl``, one line a step, and ``loss.png``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from sfumato.training.loop import TrainStep


class Log:
    """Appends steps to ``log.jsonl``; a resumed run first cuts the lines that it will repeat."""

    def __init__(self, path: Path, finished: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [entry for entry in read_log(path) if entry["step"] < finished]
        self.file = path.open("w", encoding="utf-8")
        for entry in kept:
            self.file.write(json.dumps(entry) + "\n")

    def add(self, step: TrainStep, learning_rate: float) -> None:
        entry = {
            "step": step.index,
            **{name: round(value, 6) for name, value in step.terms.items()},
            "grad_norm": round(step.grad_norm, 5),
            "learning_rate": learning_rate,
            "seconds": round(step.seconds, 4),
        }
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """All whole lines of a log; a last line cut short by a kill is dropped."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def plot_loss(
    entries: Sequence[dict[str, float]], size: tuple[int, int] = (900, 420)
) -> Image.Image:
    """The loss over steps, both axes labelled, the loss on a logarithmic scale.

    The thin line is the mean of equal groups of steps, the thick one its moving average.
    """
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = 70, 20, size[0] - 20, size[1] - 40
    draw.rectangle((left, top, right, bottom), outline="#999")
    points = _grouped([(e["step"], e["loss"]) for e in entries if e["loss"] > 0], right - left)
    if len(points) < 2:
        return image
    smooth = _smoothed(points)
    low = math.log(min(y for _, y in points))
    high = max(math.log(max(y for _, y in points)), low + 1e-6)
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - first) / (last - first)
        up = (math.log(point[1]) - low) / (high - low)
        return left + across * (right - left), bottom - up * (bottom - top)

    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = left + share * (right - left), bottom - share * (bottom - top)
        draw.line((left, y, right, y), fill="#eee")
        draw.text((8, y - 6), f"{math.exp(low + share * (high - low)):.4g}", fill="#333")
        draw.text((x - 20, bottom + 8), f"{first + share * (last - first):.0f}", fill="#333")
    draw.text((left + 8, top + 4), "loss (log scale) over steps", fill="#333")
    draw.line([place(p) for p in points], fill="#a9c4e8", width=1)
    draw.line([place(p) for p in smooth], fill="#1f5fae", width=3)
    return image


def _grouped(points: list[tuple[float, float]], groups: int) -> list[tuple[float, float]]:
    width = max(1, len(points) // groups)
    chunks = [points[i : i + width] for i in range(0, len(points), width)]
    return [(c[0][0], sum(y for _, y in c) / len(c)) for c in chunks]


def _smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    mean, smooth = points[0][1], []
    for x, y in points:
        mean += 0.05 * (y - mean)
        smooth.append((x, mean))
    return smooth
