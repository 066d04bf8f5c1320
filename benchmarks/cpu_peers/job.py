"""What is asked of every contender, and the numbers that all of them are fed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

#: What can be measured: a call of one network, or a whole picture.
PARTS = ("unet", "vae", "text", "image")
#: The timestep of every call of the UNet.
TIMESTEP = 500
PROMPT = "a photograph of an astronaut riding a horse"
TOKENS = 77


@dataclass(frozen=True)
class Shape:
    """How much one call computes.

    Attributes:
        size: height and width of the picture in pixels.
        batch: pictures at once. Guidance is always on: the UNet and the text encoder see twice as
            many rows.
        steps: of a whole picture.
    """

    size: int = 512
    batch: int = 1
    steps: int = 4


@dataclass(frozen=True)
class Job:
    """What a worker loads.

    Attributes:
        part: one of `PARTS`.
        model: a folder in diffusers' layout.
        threads: how many to compute with.
        cache: where converted models are kept.
    """

    part: str
    model: Path
    threads: int
    cache: Path

    def config(self, name: str) -> dict[str, Any]:
        """The configuration of a part of the model."""
        return json.loads((self.model / name / "config.json").read_text("utf-8"))

    @cached_property
    def scale(self) -> int:
        """Pixels of the picture along one of the latents."""
        return 2 ** (len(self.config("vae")["block_out_channels"]) - 1)

    def inputs(self, shape: Shape) -> dict[str, np.ndarray]:
        """Random inputs of the part, the same for every contender, in float32 (ids in int64)."""
        random = np.random.default_rng(7)
        edge = shape.size // self.scale

        def normal(*sizes: int) -> np.ndarray:
            return random.standard_normal(sizes, dtype=np.float32)

        if self.part == "unet":
            unet, rows = self.config("unet"), 2 * shape.batch
            width = unet.get("cross_attention_dim", 1280)
            return {
                "sample": normal(rows, unet.get("in_channels", 4), edge, edge),
                "timestep": np.array([TIMESTEP], np.int64),  # openvino-genai wants it so
                "encoder_hidden_states": normal(rows, TOKENS, width),
            }
        if self.part == "vae":
            channels = self.config("vae").get("latent_channels", 4)
            return {"latent_sample": normal(shape.batch, channels, edge, edge)}
        words = self.config("text_encoder").get("vocab_size", 49408)
        ids = random.integers(0, words - 2, (2 * shape.batch, TOKENS))
        ids[:, -1] = words - 1  # the end of the text, by which the encoder pools
        return {"input_ids": ids}


@dataclass(frozen=True)
class Sample:
    """What a call gave.

    Attributes:
        output: the result, to see that all contenders compute the same; None where that cannot be.
        seconds: how long it took, of contenders that can only be watched from outside while they
            draw a whole picture; None where the clock around the call tells.
    """

    output: np.ndarray | None = None
    seconds: float | None = None


#: A loaded contender: takes a step of the given shape.
Runner = Callable[[Shape], Sample]
