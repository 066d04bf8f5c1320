"""The one flow of a call, from a checked request to pictures. Every pipeline is a caller of it.

    embed the prompts        each pipeline's ``_embed``
    choose the timesteps     `stages.retrieve_timesteps`; for a given picture only the last of them
    prepare the pieces       in order: this is the order of random draws
    denoise                  the network, seen through the pieces
    decode, judge, convert

A `Piece` is what one kind of drawing adds: where latents start, further channels or residuals for
the network, something to do after each step. Pipelines are lists of pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sfumato.diffusion.denoise import Step, denoise
from sfumato.diffusion.foreign import SchedulerRun
from sfumato.diffusion.guidance import ClassifierFree, Guidance
from sfumato.diffusion.guidance_parts import CFGPlusPlus, as_parts
from sfumato.diffusion.levels import Levels
from sfumato.diffusion.noise import GeneratorNoise
from sfumato.diffusion.run import Solver
from sfumato.diffusion.steering import GuidancePart, Steered
from sfumato.errors import InputError
from sfumato.models.kept_projections import keeping_projections
from sfumato.pipelines import checks, ip_adapter, prompting, seeding, stages
from sfumato.pipelines.prompting import Wording
from sfumato.pipelines.request import Request
from sfumato.pipelines.saving import as_savings
from sfumato.pipelines.seamless import seamless
from sfumato.pipelines.watch import Watcher
from sfumato.pipelines.wrapping import rounding, without_negative
from sfumato.text.contexts import ContextScript

#: ``(x, timestep, context, **inputs) -> output``; ``inputs`` are further arguments of the UNet.
Network = Callable[..., Tensor]


@dataclass(eq=False)
class Drawing:
    """A call on its way.

    Attributes:
        pipeline: whose components draw.
        request: what is asked for.
        scheduler: the pipeline's, or a copy while another call is using that.
        device: where all is computed.
        network_dtype: in which precision the networks compute.
        dtype: of latents, noise, and what else the pieces make.
        timesteps: those to pass through.
        steps: how many steps these are; a step may take several timesteps.
        context: the embedded prompts; in guidance with the negative half. None where the network
            is told nothing of the kind.
        script: the context of each step, for prompts that change; None when all have `context`.
        weights: for each picture those of the parts of its prompt; None for one part of weight 1.
        parts: of the guidance, besides its scale.
        separable: whether the network can be asked about half of the context.
        block: which block of the context is the prompts'; None in a call without guidance.
        x: the latents to begin with; a piece has to set them.
        tensors: what callbacks may ask for besides latents and context, by name. Pieces keep here
            what callbacks may change.
        row: how many timesteps are done.
        size: height and width of the pictures in pixels, for pieces that are not told them.
    """

    pipeline: Any
    request: Request
    scheduler: Any
    device: torch.device
    network_dtype: torch.dtype
    dtype: torch.dtype
    timesteps: Tensor
    steps: int
    context: Tensor | None = None
    script: ContextScript | None = None
    weights: tuple[tuple[float, ...], ...] | None = None
    parts: tuple[GuidancePart, ...] = ()
    separable: bool = False
    block: int | None = None
    x: Tensor | None = None
    tensors: dict[str, Tensor | None] = field(default_factory=dict)
    row: int = 0
    size: tuple[int, int] | None = None

    def tensor(self, name: str) -> Tensor:
        """A tensor that callbacks may have replaced."""
        tensor = self.tensors[name]
        if tensor is None:
            raise InputError(f"`{name}` is gone.", hint="A callback may replace it, not drop it.")
        return tensor

    @property
    def pictures(self) -> int:
        """How many pictures are drawn."""
        return self.request.pictures

    @property
    def guided(self) -> bool:
        """Whether the network is asked with the negative prompt as well."""
        return self.pipeline.do_classifier_free_guidance

    def guidance(self) -> Guidance | None:
        """How to ask the network in the next step; callbacks may change it from step to step."""
        guidance = self.pipeline._guidance()
        if guidance is not None and self.block is None:
            raise InputError(
                "Guidance cannot begin on the way, since the negative prompt was left out.",
                hint="Begin with a `guidance_scale` above 1.",
            )
        if guidance is None and self.weights is not None:
            raise InputError("A prompt with AND needs guidance to its end.")
        tells = getattr(self.scheduler, "wants_negative", False)
        if self.weights is None and not self.parts and not tells:
            return guidance
        base = ClassifierFree(1.0) if guidance is None else guidance
        if not isinstance(base, ClassifierFree):
            name = type(self.pipeline).__name__
            raise InputError(
                f"{name} takes no prompts with AND, no parts of a guidance, and no samplers of"
                " CFG++."
            )
        if self.weights is not None and not base.takes_parts:
            raise InputError(f"{type(self.pipeline).__name__} takes no prompts with AND.")
        if tells and guidance is not None:
            base = replace(base, tells_negative=True)
        if base.doubles:
            base = replace(base, weights=self.weights)
        separable = self.separable and base.separable
        return Steered(base, self.parts, separable) if self.parts else base


class Piece:
    """What one kind of drawing adds to the flow; each method does nothing until overridden."""

    #: What it is called where it has to know the steps before the first; None if it need not.
    needs_steps: str | None = None

    def check(self, pipeline: Any, request: Request) -> None:
        """Refuse what can be refused before any network runs."""

    def prepare(self, drawing: Drawing) -> None:
        """Encode pictures and draw noise, once, before the loop."""

    def around(self, drawing: Drawing, network: Network) -> Network:
        """The network as the loop shall see it. The last piece's is the outermost."""
        return network

    def solver(self, drawing: Drawing, solver: Solver) -> Solver:
        """The solver as the loop shall see it."""
        return solver

    def after_step(self, drawing: Drawing, step: Step) -> None:
        """Change a finished step, before callbacks see it."""

    def finish(self, drawing: Drawing, images: Any) -> Any:
        """Change the finished pictures, which are of the type asked for."""
        return images


class ChannelPiece(Piece):
    """A piece that gives the network more channels than the latents have.

    They are tensors that `prepare` puts among the drawing's, so that callbacks may change them.
    """

    #: Names of the tensors, in the order of the channels.
    channels: tuple[str, ...] = ()

    def around(self, drawing: Drawing, network: Network) -> Network:
        if not self.channels:
            return network

        def wider(x: Tensor, timestep: Tensor, context: Tensor, **inputs: Any) -> Tensor:
            more = [fit_rows(drawing.tensor(name), len(x)) for name in self.channels]
            return network(torch.cat([x, *more], dim=1), timestep, context, **inputs)

        return wider


def check_channels(unet: Any, parts: dict[str, int]) -> None:
    """Raise `InputError` unless the channels of the parts add up to what the UNet takes."""
    expected = unet.config.in_channels
    if sum(parts.values()) != expected:
        received = " + ".join(f"`num_channels_{name}`: {count}" for name, count in parts.items())
        raise InputError(
            f"Incorrect configuration settings! The config of `pipeline.unet` expects {expected}"
            f" but received {received} = {sum(parts.values())}. Please verify the config of"
            " `pipeline.unet` or your image input.",
            hint="Every way to draw with a picture needs a model that was trained for it.",
        )


def draw(
    pipeline: Any,
    request: Request,
    *pieces: Piece,
    strength: float | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Any:
    """Draw what a checked request asks for.

    Args:
        pipeline: the components.
        request: see `Request`.
        pieces: in the order in which they draw noise; one sets the first latents.
        strength: how much of a given picture to draw anew, 0..1: only this share of the steps is
            taken. None takes all.
        decode: latents to pictures around -1..1, in place of the autoencoder's way.

    Returns:
        The pipeline's output object, or a tuple as ``request.return_dict`` says.
    """
    checks.check_callbacks(
        request.callback_steps,
        request.callback_on_step_end_tensor_inputs,
        pipeline._callback_tensor_inputs,
    )
    request.check(pipeline.scheduler.config.get("num_train_timesteps", 1000))
    separable = len(pieces) == 1
    pieces = (*pieces, *(saving.piece() for saving in as_savings(request.savings)))
    for piece in pieces:
        piece.check(pipeline, request)
    wording = prompting.read_wording(pipeline, request)
    with (
        pipeline._running(request.state()),
        stages.borrow(pipeline.scheduler) as scheduler,
        prompting.acting(pipeline, wording, int(request.num_images_per_prompt)),
        seamless(request.tiling),
    ):
        drawing = _begin(pipeline, request, wording, scheduler, strength)
        conditions = pipeline._conditions(
            request.ip_adapter_image,
            request.ip_adapter_image_embeds,
            drawing.pictures,
            drawing.network_dtype,
            drawing.device,
        )
        if drawing.weights is not None:
            parts = len(drawing.weights[0])
            conditions = prompting.repeat_positive(conditions, drawing.pictures, parts)
        for piece in pieces:
            piece.prepare(drawing)
        drawing.separable = separable and not conditions
        latents = _denoise(drawing, pieces, conditions)
        output = pipeline._to_output(
            latents, request.output_type, request.generator, drawing.network_dtype, decode
        )
        for piece in pieces:
            output.images = piece.finish(drawing, output.images)
    if request.return_dict:
        return output
    return tuple(getattr(output, entry.name) for entry in fields(output))


def _begin(
    pipeline: Any,
    request: Request,
    wording: Wording | None,
    scheduler: Any,
    strength: float | None,
) -> Drawing:
    """The drawing with its prompts embedded and its timesteps chosen."""
    device = pipeline._execution_device
    timesteps, steps = stages.retrieve_timesteps(
        scheduler, request.num_inference_steps, device, request.timesteps, request.sigmas
    )
    if strength is not None:
        timesteps, steps = stages.last_timesteps(scheduler, steps, strength)
    begin = (
        pipeline._embed if wording is None else partial(_embed_by_step, wording, steps, pipeline)
    )
    embedded = begin(request, device)
    return Drawing(
        pipeline=pipeline,
        request=request,
        scheduler=scheduler,
        device=device,
        timesteps=timesteps,
        steps=steps,
        block=getattr(pipeline._guidance(), "positive_block", None),
        dtype=pipeline.latents_dtype or embedded["network_dtype"],
        **embedded,
    )


def _embed_by_step(
    wording: Wording, steps: int, pipeline: Any, request: Request, device: torch.device
) -> dict[str, Any]:
    """The fields of a `Drawing` that prompts in a syntax of their own make."""
    made = prompting.embed(pipeline, request, wording, max(steps, 1), device)
    script = made.join(pipeline._join)
    return {
        "network_dtype": script.contexts[0].dtype,
        "context": script.contexts[script.choice[0]],
        "script": script,
        "weights": made.weights,
        "tensors": {
            "negative_prompt_embeds": None if made.negative is None else made.negative.contexts[0]
        },
    }


def _denoise(drawing: Drawing, pieces: tuple[Piece, ...], conditions: dict[str, Any]) -> Tensor:
    """The loop, with what a callback changed taken into account after every step."""
    pipeline, request, x = drawing.pipeline, drawing.request, drawing.x
    if x is None:
        raise InputError("None of the pieces says which latents to begin with.")
    if len(drawing.timesteps) == 0:  # a given picture of which nothing is to be drawn anew
        return x

    def unet(x: Tensor, timestep: Tensor, context: Tensor | None, **inputs: Any) -> Tensor:
        conditioned = ip_adapter.for_rows(conditions, len(x))
        return pipeline._predict(
            x.to(drawing.network_dtype), timestep, context, **conditioned, **inputs
        )

    network: Network = unet
    solver = _solver(drawing, pieces)
    for piece in pieces:
        network = piece.around(drawing, network)
        solver = piece.solver(drawing, solver)
    if drawing.dtype != drawing.network_dtype:
        network = rounding(network, drawing.network_dtype)
    if drawing.block is not None:
        network = without_negative(drawing, network)
    parts = [*as_parts(request.guidance)]
    parts += [part for saving in as_savings(request.savings) for part in saving.parts()]
    if parts:
        if any(isinstance(part, CFGPlusPlus) for part in parts) and getattr(
            drawing.scheduler, "wants_negative", False
        ):
            raise InputError("This sampler has CFG++ in it; leave the part CFGPlusPlus out.")
        levels = Levels.of(drawing.scheduler, drawing.timesteps)
        drawing.parts = tuple(part.bind(levels, pipeline.unet) for part in parts)
    pipeline._num_timesteps = len(solver)
    with Watcher(drawing, solver) as watch, keeping_projections():
        context = drawing.context if drawing.script is None else drawing.script.spread(len(solver))
        for step in denoise(network, x, context, solver, drawing.guidance()):
            drawing.row, pipeline._num_timesteps = step.index + 1, len(solver)
            for piece in pieces:
                piece.after_step(drawing, step)
            watch(step)
            x, step.guidance = step.x, drawing.guidance()
            if pipeline.interrupt:
                break
    return x


def _solver(drawing: Drawing, pieces: tuple[Piece, ...]) -> Solver:
    """The scheduler's way through the loop.

    Raises:
        InputError: the scheduler draws no such noise, or chooses its steps as it goes where they
            have to be known.
    """
    scheduler, request = drawing.scheduler, drawing.request
    seeding.check_scheduler(scheduler, request.generator)
    if not getattr(scheduler, "adaptive", False):
        return SchedulerRun(
            scheduler, drawing.timesteps, generator=request.generator, eta=float(request.eta)
        )
    needing = [piece.needs_steps for piece in pieces if piece.needs_steps is not None]
    if request.guidance is not None:
        needing.append("parts of a guidance")
    if drawing.script is not None and len(drawing.script.contexts) > 1:
        needing.append("prompts that change on the way")
    if needing:
        raise InputError(
            f"{type(scheduler).__name__} chooses its steps as it goes, but {needing[0]} have to"
            " know them before.",
            hint="Use another sampler, such as DPM++ 2M.",
        )
    return scheduler.run(drawing.device, GeneratorNoise(request.generator))


def fit_rows(tensor: Tensor, rows: int) -> Tensor:
    """A tensor for a batch of ``rows``: its own rows in turn, as often as it takes.

    In guidance the network is asked about blocks of all pictures.
    """
    times = -(-rows // len(tensor))
    return tensor[:rows] if times == 1 else tensor.repeat(times, *[1] * (tensor.ndim - 1))[:rows]
