"""Pictures larger than a model was trained for: overlapping windows, averaged after each step.

MultiDiffusion, arXiv:2302.08113.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.diffusion.guidance_attention import SelfAttentionGuidance
from sfumato.diffusion.guidance_parts import as_parts
from sfumato.diffusion.run import Draw, Solver
from sfumato.errors import InputError
from sfumato.pipelines import stages
from sfumato.pipelines.flow import Drawing, Network, Piece


class View(NamedTuple):
    """A window on latents; its right edge may be past theirs when they are a circle."""

    top: int
    bottom: int
    left: int
    right: int


def list_views(
    height: int, width: int, window: int = 64, stride: int = 8, circular: bool = False
) -> list[View]:
    """Windows that together cover latents of a height and width, row by row.

    Args:
        height, width: of the latents.
        window: side of a window.
        stride: from one to the next; the last ones may overlap more, to end at the edge.
        circular: go on past the right edge, at the left one.
    """
    tops = _starts(height, window, stride)
    lefts = _starts(width, window, stride)
    if circular and width > window:
        lefts = [i * stride for i in range(width // stride)]
    return [View(t, t + window, left, left + window) for t in tops for left in lefts]


def _starts(length: int, window: int, stride: int) -> list[int]:
    if length <= window:
        return [0]
    count = math.ceil((length - window) / stride) + 1
    return [min(i * stride, length - window) for i in range(count)]


class Views(Piece):
    """Draws large latents window by window.

    Args:
        batch: windows in one call of the network.
        circular: the left edge continues the right one.
    """

    needs_steps = "panoramas"

    def __init__(self, batch: int, circular: bool) -> None:
        self.batch, self.circular = batch, circular

    def prepare(self, drawing: Drawing) -> None:
        x = drawing.x
        assert x is not None
        parts = as_parts(drawing.request.guidance)
        if any(isinstance(part, SelfAttentionGuidance) for part in parts):
            raise InputError(
                "SelfAttentionGuidance looks at all of a picture at once, of which the network"
                " sees only windows in a panorama.",
                hint="PerturbedAttentionGuidance works there.",
            )
        self.views = list_views(x.shape[2], x.shape[3], circular=self.circular)

    def around(self, drawing: Drawing, network: Network) -> Network:
        """The network sees a part of the windows at a time, each with the context of its picture.

        The batch is ordered by block of guidance, then window, then picture.
        """

        def by_parts(x: Tensor, timestep: Tensor, context: Tensor, **inputs: Any) -> Tensor:
            count, pictures = len(self.views), drawing.pictures
            blocks = len(x) // (count * pictures)
            seen = x.view(blocks, count, pictures, *x.shape[1:])
            texts = context.view(blocks, 1, pictures, *context.shape[1:])
            answers = []
            for part in seen.split(self.batch, dim=1):
                spread = texts.expand(-1, part.shape[1], *texts.shape[2:])
                answer = network(part.flatten(0, 2), timestep, spread.flatten(0, 2), **inputs)
                answers.append(answer.view(*part.shape[:3], *answer.shape[1:]))
            return torch.cat(answers, dim=1).flatten(0, 2)

        return by_parts

    def solver(self, drawing: Drawing, solver: Solver) -> Solver:
        return _ViewSolver(drawing, self.views, self.batch, solver)


class _ViewSolver:
    """Steps every window by itself, with a scheduler for each batch of them, and averages."""

    def __init__(self, drawing: Drawing, views: list[View], batch: int, whole: Any) -> None:
        self.timesteps = drawing.timesteps
        self.options = whole.options
        self.batches = [views[i : i + batch] for i in range(0, len(views), batch)]
        self.schedulers = [stages.private_copy(drawing.scheduler) for _ in self.batches]

    def __len__(self) -> int:
        return len(self.timesteps)

    def network_input(self, row: int, x: Tensor) -> Tensor:
        t = self.timesteps[row]
        pairs = zip(self.schedulers, self.batches, strict=True)
        return torch.cat([s.scale_model_input(_cut(x, views), t) for s, views in pairs])

    def step(self, row: int, x: Tensor, output: Tensor, draw: Draw) -> tuple[Tensor, None]:
        total, times = torch.zeros_like(x), torch.zeros_like(x)
        outputs = output.split([len(views) * len(x) for views in self.batches])
        for scheduler, views, own in zip(self.schedulers, self.batches, outputs, strict=True):
            stepped = scheduler.step(
                own, self.timesteps[row], _cut(x, views), **self.options, return_dict=False
            )[0]
            for view, part in zip(views, stepped.split(len(x)), strict=True):
                rows, columns = _places(view, x)
                total[:, :, rows, columns] += part
                times[:, :, rows, columns] += 1
        return torch.where(times > 0, total / times, total), None


def _places(view: View, x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (as a column) and columns of a window, the latter around the edge."""
    height, width = x.shape[2:]
    rows = torch.arange(view.top, min(view.bottom, height), device=x.device)
    right = view.right if width >= view.right - view.left else width
    return rows[:, None], torch.arange(view.left, right, device=x.device) % width


def _cut(x: Tensor, views: list[View]) -> Tensor:
    parts = []
    for view in views:
        rows, columns = _places(view, x)
        parts.append(x[:, :, rows, columns])
    return torch.cat(parts)


def decode_circle(vae: Any, latents: Tensor, scale: int, padding: int = 8) -> Tensor:
    """Latents to pictures whose left edge continues the right one.

    Args:
        vae: autoencoder.
        latents: around the circle.
        scale: pixels per latent.
        padding: how many columns of the other edge the decoder sees.
    """
    around = torch.cat([latents[..., -padding:], latents, latents[..., :padding]], dim=-1)
    return stages.decode(vae, around)[..., scale * padding : -scale * padding]
