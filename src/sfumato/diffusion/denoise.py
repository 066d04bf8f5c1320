"""The loop: noise goes in, and every step comes out, for consumers: progress bars, previews,
callbacks, deadlines, cancelling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from sfumato.array_kinds import namespace
from sfumato.diffusion.guidance import Guidance, Network, as_guidance
from sfumato.diffusion.plan import Plan
from sfumato.errors import InputError, NumericalError

if TYPE_CHECKING:  # arrays of NumPy will do as well
    import torch

    from sfumato.diffusion.noise import NoiseSource
    from sfumato.diffusion.run import Solver


@dataclass
class Step:
    """One finished row. What a consumer assigns to the first three is used from then on.

    Attributes:
        x: the picture in progress, after this step.
        context: what the network is conditioned on.
        guidance: how the network is asked; a number is classifier-free guidance.
        index: number of this call of the network, from 0.
        timestep: what the network was told; a tensor with one number.
        denoised: the finished picture as the network sees it now (for previews), or None.
        output: the guided answer of the network.
        seen: what the network saw, in its own scale.
    """

    x: torch.Tensor
    context: Any
    guidance: Guidance | float | None
    index: int
    timestep: torch.Tensor
    denoised: torch.Tensor | None
    output: torch.Tensor
    seen: torch.Tensor


def denoise(
    model: Network,
    x: torch.Tensor,
    context: Any,
    plan: Plan | Solver,
    guidance: Guidance | float | None = None,
    noise: NoiseSource | None = None,
    *,
    check_finite: bool = True,
) -> Iterator[Step]:
    """Run a plan and yield each step.

    Args:
        model: ``(x, timestep, context) -> output``, shapes alike.
        x: start, ``(n, channels, height, width)``, already multiplied by ``plan.init_sigma``.
        context: handed to the model; with guidance on, negative half first. A function gives
            the context of each row.
        plan: a sampler's table, or anything with the methods of `Solver`.
        guidance: scale of classifier-free guidance, or a function (see `guidance`).
        noise: needed by samplers that add noise.
        check_finite: stop when NaN or infinity appears.

    Raises:
        NumericalError: with ``check_finite``, at the step where the numbers broke.
        InputError: when the plan needs noise and there is none.

    >>> import numpy as np, torch
    >>> from sfumato.diffusion import frame, samplers, schedule
    >>> sigmas = [*schedule.karras_sigmas(0.03, 14.6, 8), 0.0]
    >>> way = schedule.Schedule.from_sigmas(np.arange(8, 0, -1), sigmas)
    >>> plan = samplers.euler(frame.over_sigma(way))
    >>> picture = torch.full((1, 4, 2, 2), 0.5)
    >>> def model(x, timestep, context):           # a perfect network: it knows the picture
    ...     sigma = sigmas[8 - int(timestep)]
    ...     return (x * (sigma**2 + 1) ** 0.5 - context) / sigma
    >>> x = picture + plan.init_sigma * torch.randn(1, 4, 2, 2)
    >>> *_, last = denoise(model, x, picture, plan)
    >>> last.index, round(last.x.mean().item(), 4)
    (7, 0.5)
    """
    solver = _run(plan, x) if isinstance(plan, Plan) else plan

    def draw(dtype: torch.dtype) -> torch.Tensor:
        if noise is None:
            raise InputError("This sampler adds noise at each step.", hint="Pass `noise=`.")
        return noise.draw(x.shape, dtype, x.device)

    for row in count():
        if row >= len(solver):  # which may have grown
            return
        seen_context = context(row) if callable(context) else context
        timestep = solver.timesteps[row]
        seen = solver.network_input(row, x)
        output = as_guidance(guidance)(model, seen, timestep, seen_context)
        x, denoised = solver.step(row, x, output, draw)
        if check_finite and not namespace(x).isfinite(x).all():
            raise broken_in_step(row, len(solver), float(timestep))
        step = Step(x, seen_context, guidance, row, timestep, denoised, output, seen)
        yield step
        x, guidance = step.x, step.guidance
        if step.context is not seen_context:  # a consumer's change goes before what was planned
            context = step.context


def broken_in_step(row: int, rows: int, timestep: float) -> NumericalError:
    """The error of a row, counted from 0, after which x has NaN or infinity in it."""
    return NumericalError(
        f"NaN or infinity in step {row + 1} of {rows}, timestep {timestep:g}.",
        hint="16-bit floats overflow in some models: try float32 or bfloat16.",
    )


def _run(plan: Plan, x: Any) -> Solver:
    """The plan's run on arrays of the kind of ``x``."""
    if isinstance(x, np.ndarray):
        from sfumato.diffusion.array_run import ArrayRun

        return ArrayRun(plan)
    from sfumato.diffusion.run import PlanRun

    return PlanRun(plan, x.device)
