"""Times of steps and decoding, of contenders that only draw whole pictures and report each step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.cpu_peers.job import Runner, Sample, Shape

#: Draws a picture of a shape, calls its argument after each step, and returns the picture.
Draw = Callable[[Shape, Callable[[], None]], np.ndarray]
#: Steps to take when one is to be timed: those after the first count.
STEPS = 3


def watched(draw: Draw, part: str) -> Runner:
    """A runner from something that reports its steps.

    Args:
        draw: how to draw.
        part: "image" for the clock around the call; "unet" for the time from step to step; "vae"
            for that from the last step to the picture.
    """

    def call(shape: Shape) -> Sample:
        if part == "image":
            return Sample(draw(shape, lambda: None))
        marks: list[float] = []

        def mark() -> None:
            marks.append(time.perf_counter())

        draw(Shape(shape.size, shape.batch, STEPS), mark)
        ended = time.perf_counter()
        if part == "vae":
            return Sample(seconds=ended - marks[-1])
        steps = [after - before for before, after in pairwise(marks)]
        return Sample(seconds=statistics.median(steps))

    return call


def as_array(pictures: Any) -> np.ndarray:
    """Pictures of 0..255 as ``(batch, height, width, 3)`` in 0..1."""
    return np.asarray(pictures, np.float32) / 255
