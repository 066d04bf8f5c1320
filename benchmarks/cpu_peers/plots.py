"""The measurements as pictures, where matplotlib is installed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.cpu_peers.job import Shape
from benchmarks.cpu_peers.pool import Record


def bars(
    path: Path,
    records: Sequence[Record],
    shape: Shape,
    floors: Mapping[str, float],
    title: str,
) -> None:
    """Medians of one shape, fastest above, with what the machine's rate would allow.

    Args:
        path: of the picture.
        records: those with times of the shape are drawn.
        shape: which.
        floors: seconds at the ceiling, by precision.
        title: of the picture.
    """
    from matplotlib.figure import Figure

    drawn = {r.name: statistics.median(t.values()) for r in records if (t := r.seconds.get(shape))}
    names = sorted(drawn, key=lambda name: -drawn[name])
    figure = Figure(figsize=(8, 1.2 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    colours = ["#c0392b" if name.startswith("sfumato") else "#7f8c8d" for name in names]
    drawn_bars = axes.barh(names, [drawn[name] for name in names], color=colours)
    axes.bar_label(drawn_bars, fmt="%.2f", padding=3)
    for number, (precision, seconds) in enumerate(floors.items()):
        style = ("--", ":", "-.")[number % 3]
        label = f"{precision} at the ceiling"
        axes.axvline(seconds, linestyle=style, color="black", linewidth=1, label=label)
    if floors:
        axes.legend(loc="lower right")
    axes.set_xlabel("seconds")
    axes.set_title(title)
    figure.savefig(path)


def curves(
    path: Path,
    records: Sequence[Record],
    work: Mapping[Shape, Mapping[str, float]],
    title: str,
) -> None:
    """Time over operations on both logarithmic axes: along a straight line there is no cliff."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for record in records:
        points = sorted(
            (sum(work[shape].values()), statistics.median(times.values()))
            for shape, times in record.seconds.items()
        )
        if points:
            axes.loglog(*zip(*points, strict=True), marker="o", label=record.name)
    axes.set_xlabel("GFLOP")
    axes.set_ylabel("seconds")
    axes.set_title(title)
    axes.legend()
    figure.savefig(path)
