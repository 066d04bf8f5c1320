"""Prompts that are drawn again: the text encoder is asked once, unless it has changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sfumato.text import remembered
from sfumato.text.conditioning import TextEncoding
from tests.pipelines.tiny import tiny_text_encoder, tokenizer


class Counting:
    """A text encoder whose questions are counted at its first layer's method."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encoder = tiny_text_encoder()
        self.asked = 0
        real = TextEncoding._encode

        def counted(encoding: TextEncoding, *args: Any, **options: Any) -> Any:
            self.asked += 1
            return real(encoding, *args, **options)

        monkeypatch.setattr(TextEncoding, "_encode", counted)

    def __call__(self, text: str, clip_skip: int | None = None) -> torch.Tensor:
        with torch.no_grad():
            return TextEncoding(tokenizer(), self.encoder, "cpu")(text, clip_skip=clip_skip)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def test_a_prompt_is_encoded_once(ask: Counting) -> None:
    first = ask("a cat")
    again = ask("a cat")
    assert ask.asked == 1
    assert torch.equal(first, again)
    again.zero_()
    assert torch.equal(ask("a cat"), first)
    assert not torch.equal(ask("a dog"), first)
    assert not torch.equal(ask("a cat", clip_skip=1), first)
    assert ask.asked == 3


def test_other_weights_are_asked_anew(ask: Counting) -> None:
    first = ask("a cat")
    with torch.no_grad():
        ask.encoder.text_model.final_layer_norm.weight.mul_(2)
    assert not torch.equal(ask("a cat"), first)
    ask.encoder.to(torch.bfloat16)
    assert ask("a cat").dtype is torch.bfloat16
    assert ask.asked == 3


def test_hooks_and_training_are_always_asked(ask: Counting) -> None:
    hook = ask.encoder.register_forward_hook(lambda *_: None)
    ask("a cat")
    ask("a cat")
    assert ask.asked == 2
    hook.remove()
    ask.encoder.train()
    ask("a cat")
    ask("a cat")
    assert ask.asked == 4


def test_only_the_last_prompts_are_remembered(
    ask: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "CAPACITY", 2)
    for text in ("a", "b", "a", "c", "a", "b"):
        ask(text)
    assert ask.asked == 4  # a, b, c, and b again
