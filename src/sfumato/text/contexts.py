"""From prompts in a syntax of their own to what the network is conditioned on, step by step.

The pipelines call `condition` in place of `conditioning.encode_prompt` when a prompt is not meant
literally. The result is data: a few tensors, and which of them belongs to which step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from sfumato.array_kinds import namespace
from sfumato.errors import InputError
from sfumato.text.long_prompts import Encoding, LongPromptEncoder, PromptSyntax
from sfumato.text.prompt.attention import Phrase
from sfumato.text.prompt.composition import split_parts
from sfumato.text.prompt.schedule import Earlier, Script, parse_script

#: At every step, which of a text's forms it has then: an index into those there are.
Forms = tuple[list[str], list[int]]


@dataclass(frozen=True, eq=False)
class ContextScript:
    """What the network is conditioned on at each step.

    Attributes:
        contexts: ``(halves * pictures, length, width)`` each, the negative half first where there
            is one, then a block for each part of the prompts.
        choice: for every step, which of the contexts.
    """

    contexts: Sequence[Any]
    choice: Sequence[int]

    def spread(self, rows: int) -> Callable[[int], Any]:
        """The context by row, for samplers that call the network ``rows`` times in these steps."""
        steps = len(self.choice)
        return lambda row: self.contexts[self.choice[min(row * steps // rows, steps - 1)]]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Prompts and negative prompts of a call, embedded.

    Attributes:
        positive: contexts by step; a block of pictures for each part.
        negative: likewise, of the negative prompts; None without guidance.
        weights: for each picture those of its parts; None when all have one part of weight 1.
    """

    positive: ContextScript
    negative: ContextScript | None
    weights: tuple[tuple[float, ...], ...] | None

    def join(self, join: Callable[[Any, Any], Any]) -> ContextScript:
        """Both halves in one, put together by ``join(positive, negative)``."""
        if self.negative is None:
            return self.positive
        pairs = list(zip(self.positive.choice, self.negative.choice, strict=True))
        distinct = list(dict.fromkeys(pairs))
        joined = [join(self.positive.contexts[p], self.negative.contexts[n]) for p, n in distinct]
        return ContextScript(joined, [distinct.index(pair) for pair in pairs])


def condition(
    prompts: Sequence[str],
    negatives: Sequence[str] | None,
    *,
    syntax: PromptSyntax,
    encoding: Encoding,
    steps: int,
    earlier: Earlier | None = None,
    images: int = 1,
    clip_skip: int | None = None,
    acting: Sequence[Callable[[], AbstractContextManager[object]]] | None = None,
) -> Conditioning:
    """Embed prompts for all steps of a run.

    All embeddings of a call have one length, that of the longest; shorter ones are filled up with
    chunks without words.

    Args:
        prompts: one text for each group of ``images`` pictures, tags already taken out.
        negatives: as many; None when there is no guidance.
        syntax: how to read them.
        encoding: tokenizer and text encoder.
        steps: for how many steps.
        earlier: the pass before these steps, if there was one.
        images: pictures for each prompt.
        clip_skip: layers of the text encoder to leave out, for both kinds of prompts.
        acting: for each prompt, what makes the adapters of its own act on the text encoder.

    Raises:
        InputError: several parts without guidance, or no text encoder.
    """
    encoding.check_parts()
    parts = [split_parts(text) if syntax.scripted else [Phrase(text, 1.0)] for text in prompts]
    most = max(len(own) for own in parts)
    if most > 1 and negatives is None:
        raise InputError(
            "A prompt with AND needs guidance, since its parts are weighed against the negative "
            "prompt.",
            hint="Pass a `guidance_scale` above 1.",
        )
    # Where another picture has more parts, the first stands in, with weight 0.
    filled = [[*own, *[own[0]._replace(weight=0.0)] * (most - len(own))] for own in parts]
    shared = LongPromptEncoder(encoding, syntax, clip_skip)
    around = [nullcontext] * len(prompts) if acting is None else acting
    texts: list[list[_Text]] = []
    for index, own in enumerate(filled):
        encoder = shared if acting is None else shared.anew()
        given = [part.text for part in own] + ([] if negatives is None else [negatives[index]])
        with around[index]():
            texts.append(
                [_encoded(text, encoder, syntax.scripted, steps, earlier) for text in given]
            )
            empty = encoder.empty()
        for text in texts[-1]:
            text.filling = empty
    length = max(text.chunks for row in texts for text in row)
    blocks = [_block([row[part] for row in texts], length, images) for part in range(most)]
    negative = None
    if negatives is not None:
        negative = _block([row[-1] for row in texts], length, images)
    weights = tuple(tuple(p.weight for p in own) for own in filled for _ in range(images))
    return Conditioning(_stack(blocks), negative, weights if most > 1 else None)


@dataclass(eq=False)
class _Text:
    """One text of one prompt: embeddings of its forms, the form at each step, what fills it up."""

    forms: list[list[Any]]
    choice: list[int]
    filling: Any = None

    @property
    def chunks(self) -> int:
        return max(len(form) for form in self.forms)

    def embedding(self, form: int, length: int) -> Any:
        """``(length * tokens of a chunk, width)``."""
        own = self.forms[form]
        assert self.filling is not None
        return _joined([*own, *[self.filling] * (length - len(own))])


def _encoded(
    text: str, encoder: LongPromptEncoder, scripted: bool, steps: int, earlier: Earlier | None
) -> _Text:
    script = parse_script(text) if scripted else Script([text])
    forms: dict[str, int] = {}
    choice: list[int] = []
    for last, form in script.timetable(steps, earlier):
        index = forms.setdefault(form, len(forms))
        choice += [index] * (last - len(choice))
    return _Text([encoder(form) for form in forms], choice)


def _block(texts: Sequence[_Text], length: int, images: int) -> ContextScript:
    """One text of each prompt, for all pictures."""
    return _merged(
        [text.choice for text in texts],
        lambda forms: _stacked(
            [
                text.embedding(form, length)
                for text, form in zip(texts, forms, strict=True)
                for _ in range(images)
            ]
        ),
    )


def _stack(blocks: Sequence[ContextScript]) -> ContextScript:
    """The blocks of all parts, one after another."""
    return _merged(
        [block.choice for block in blocks],
        lambda chosen: _joined(
            [block.contexts[index] for block, index in zip(blocks, chosen, strict=True)]
        ),
    )


def _merged(
    choices: Sequence[Sequence[int]], build: Callable[[tuple[int, ...]], Any]
) -> ContextScript:
    """One script of several: a context for every combination that occurs."""
    places: dict[tuple[int, ...], int] = {}
    choice = [places.setdefault(combined, len(places)) for combined in zip(*choices, strict=True)]
    return ContextScript([build(combined) for combined in places], choice)


def _joined(arrays: Sequence[Any]) -> Any:
    return namespace(arrays[0]).concatenate(arrays)


def _stacked(arrays: Sequence[Any]) -> Any:
    return namespace(arrays[0]).stack(arrays)
