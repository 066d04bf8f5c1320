"""Less work for nearly the same picture: what a call may leave out, and what that costs.

    pipe("a cat", savings=[DeepCache(3), TokenMerging(0.5)])

Each saving is a plain description. It becomes a piece of the flow for one call, so nothing in the
networks is changed and other calls are not affected. Prices are measured in docs/speed.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from sfumato.diffusion.guidance_attention import self_attention_layers
from sfumato.diffusion.guidance_parts import check_number
from sfumato.diffusion.levels import Levels
from sfumato.diffusion.steering import GuidancePart
from sfumato.errors import InputError
from sfumato.models.attention import Attention
from sfumato.models.feature_reuse import DeepFeatures, most_layers, reusing
from sfumato.models.processors import AttentionProcessor, replaced_processors
from sfumato.models.token_merging import MergedAttention
from sfumato.pipelines.flow import Drawing, Network, Piece
from sfumato.pipelines.saving import Saving


@dataclass(frozen=True)
class DeepCache(Saving):
    """Compute the deep layers of the UNet only in some steps (arXiv:2312.00858).

    Attributes:
        interval: every so many steps all layers are computed; 1 saves nothing.
        depth: layers of the first half that every step computes: fewer are faster.
        start, stop: shares of the steps between which to save, 0..1.

    Raises:
        InputError: a number is out of range.
    """

    interval: int = 3
    depth: int = 1
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        check_number("DeepCache", "interval", self.interval, 1, 1000)
        check_number("DeepCache", "depth", self.depth, 0, 16)
        _check_shares("DeepCache", self.start, self.stop)

    def piece(self) -> Piece:
        return _Reuse(self)


@dataclass(frozen=True)
class TokenMerging(Saving):
    """Merge like neighbours in the self-attention of large maps (ToMe, arXiv:2303.17604).

    Attributes:
        ratio: share of the tokens to merge away, 0..0.75.
        max_downsample: merge in maps that are at most so many times smaller than the latents.
        start, stop: shares of the steps between which to save, 0..1.

    Raises:
        InputError: a number is out of range.
    """

    ratio: float = 0.5
    max_downsample: int = 1
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        check_number("TokenMerging", "ratio", self.ratio, 0, 0.75)
        check_number("TokenMerging", "max_downsample", self.max_downsample, 1, 8)
        _check_shares("TokenMerging", self.start, self.stop)

    def piece(self) -> Piece:
        return _Merge(self)


@dataclass(frozen=True)
class TextGate(Saving):
    """Stop guiding, and stop looking at the text, after some of the steps (T-GATE,
    arXiv:2404.02747): cross-attention says from then on what it said last.

    Attributes:
        stop: the share of the steps that look at the text, 0..1.

    Raises:
        InputError: a number is out of range.
    """

    stop: float = 0.5

    def __post_init__(self) -> None:
        check_number("TextGate", "stop", self.stop, 0, 1)

    def piece(self) -> Piece:
        return _Gate(self)

    def parts(self) -> tuple[GuidancePart, ...]:
        return (_UntilGate(self.stop),)


def _check_shares(owner: str, start: float, stop: float) -> None:
    check_number(owner, "start", start, 0, 1)
    check_number(owner, "stop", stop, 0, 1)


class _Reuse(Piece):
    """`DeepCache` in one call."""

    needs_steps = "savings"

    def __init__(self, saving: DeepCache) -> None:
        self.saving = saving
        self.since_full = 0
        self.row = -1
        #: Features of the calls of one step, in their order: some guidance asks more than once.
        self.kept: list[DeepFeatures] = []
        self.asked = 0

    def check(self, pipeline: Any, request: Any) -> None:
        most = most_layers(pipeline.unet) if hasattr(pipeline.unet, "up_blocks") else -1
        if most < 0:
            raise InputError("DeepCache needs a UNet of sfumato with both halves.")
        if self.saving.depth > most:
            raise InputError(
                f"`depth` of DeepCache is {self.saving.depth}, but this UNet has {most} layers in"
                " its outermost blocks."
            )

    def around(self, drawing: Drawing, network: Network) -> Network:
        def cached(x: Tensor, timestep: Tensor, context: Any, **inputs: Any) -> Tensor:
            if drawing.row != self.row:
                self._begin_step(drawing)
            features = self._features(len(x))
            with reusing(features):
                return network(x, timestep, context, **inputs)

        return cached

    def _begin_step(self, drawing: Drawing) -> None:
        steps = len(drawing.timesteps)
        saving = self.saving.start * steps <= drawing.row < self.saving.stop * steps
        self.since_full = self.since_full + 1 if self.row >= 0 else 0
        if not saving or self.since_full >= self.saving.interval:
            self.since_full = 0
        self.row, self.asked = drawing.row, 0

    def _features(self, rows: int) -> DeepFeatures:
        """Those to reuse in this call of the network, or empty ones to be filled by it."""
        index, self.asked = self.asked, self.asked + 1
        known = self.kept[index].features if index < len(self.kept) else None
        if self.since_full and known is not None and len(known) in (rows, 2 * rows):
            # Without guidance, the half that was asked about the prompt.
            return DeepFeatures(self.saving.depth, known[len(known) - rows :], shallow=True)
        fresh = DeepFeatures(self.saving.depth)
        self.kept[index : index + 1] = [fresh]
        return fresh


class _Merge(Piece):
    """`TokenMerging` in one call."""

    needs_steps = "savings"

    def __init__(self, saving: TokenMerging) -> None:
        self.saving = saving
        #: The corners are drawn alike in every call, whatever else is drawn at random.
        self.generator = torch.Generator().manual_seed(0)

    def check(self, pipeline: Any, request: Any) -> None:
        self_attention_layers(pipeline.unet)

    def _corners(self, cells: int) -> Tensor:
        return torch.randint(4, (cells,), generator=self.generator)

    def around(self, drawing: Drawing, network: Network) -> Network:
        layers = self_attention_layers(drawing.pipeline.unet).values()

        def merged(x: Tensor, timestep: Tensor, context: Any, **inputs: Any) -> Tensor:
            steps = len(drawing.timesteps)
            if not self.saving.start * steps <= drawing.row < self.saving.stop * steps:
                return network(x, timestep, context, **inputs)
            with replaced_processors(self._processors(layers, x.shape[2], x.shape[3])):
                return network(x, timestep, context, **inputs)

        return merged

    def _processors(
        self, layers: Any, height: int, width: int
    ) -> dict[Attention, AttentionProcessor]:
        sizes, factor = [], 1
        while factor <= self.saving.max_downsample:
            sizes.append((-(-height // factor), -(-width // factor)))
            factor *= 2
        return {layer: self._processor(layer, sizes) for layer in layers}

    def _processor(self, layer: Attention, sizes: list[tuple[int, int]]) -> AttentionProcessor:
        processor: Any = layer.get_processor()
        for size in sizes:  # each passes maps of other sizes on
            processor = MergedAttention(processor, size, self.saving.ratio, self._corners)
        return processor


@dataclass(frozen=True, eq=False)
class _UntilGate(GuidancePart):
    """Guidance until the gate."""

    stop: float
    levels: Levels | None = None

    def bind(self, levels: Levels, unet: Any) -> Self:
        return replace(self, levels=levels)

    def acts(self, timestep: float) -> bool:
        assert self.levels is not None
        return self.levels.share[timestep] < self.stop


@dataclass
class _GatedAttention:
    """A cross-attention layer's own processor, whose last answer can be given again."""

    inner: AttentionProcessor
    closed: Callable[[], bool]
    answer: Tensor | None = field(default=None, repr=False)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        **keywords: Any,
    ) -> Tensor:
        kept, rows = self.answer, len(hidden_states)
        if self.closed() and kept is not None and len(kept) % rows == 0:
            # As in the paper: the mean of what was said to both prompts.
            return kept.unflatten(0, (-1, rows)).mean(0)
        answer = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, **keywords)
        self.answer = answer
        return answer


class _Gate(Piece):
    """`TextGate` in one call."""

    needs_steps = "savings"

    def __init__(self, saving: TextGate) -> None:
        self.saving = saving
        self.closed = False

    def around(self, drawing: Drawing, network: Network) -> Network:
        levels = Levels.of(drawing.scheduler, drawing.timesteps)
        processors = {
            layer: _GatedAttention(layer.get_processor(), lambda: self.closed)
            for layer in drawing.pipeline.unet.modules()
            if isinstance(layer, Attention) and layer.is_cross_attention
        }

        def gated(x: Tensor, timestep: Tensor, context: Any, **inputs: Any) -> Tensor:
            self.closed = levels.share[float(timestep)] >= self.saving.stop
            with replaced_processors(processors):
                return network(x, timestep, context, **inputs)

        return gated
