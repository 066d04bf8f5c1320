"""What the network is conditioned on, for prompts with weights, of any length, that change."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.text.conditioning import TextEncoding
from sfumato.text.contexts import Conditioning, condition
from sfumato.text.long_prompts import MAX_CHUNKS, SYNTAXES, find_syntax
from sfumato.text.textual_inversion import load_textual_inversion
from sfumato.text.tokenizer import CLIPTokenizer
from tests.pipelines.tiny import WIDTH, tiny_text_encoder, tokenizer

BEGIN, END = 49406, 49407


@cache
def encoder() -> Any:
    return tiny_text_encoder(3).eval()


@torch.no_grad()
def conditioned(*prompts: str, syntax: str = "a1111", **options: Any) -> Conditioning:
    return condition(
        prompts,
        options.pop("negatives", None),
        syntax=SYNTAXES[syntax],
        encoding=options.pop("encoding", None) or TextEncoding(tokenizer(), encoder(), "cpu"),
        steps=options.pop("steps", 10),
        **options,
    )


def context(*prompts: str, syntax: str = "a1111", **options: Any) -> Tensor:
    (only,) = conditioned(*prompts, syntax=syntax, **options).positive.contexts
    return only


@torch.no_grad()
def hidden(*ids: int) -> Tensor:
    """The encoder's answer for these tokens in a chunk of their own."""
    row = [BEGIN, *ids, *[END] * (76 - len(ids))]
    return encoder()(torch.tensor([row]))[0]


def ids_of(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False).input_ids


def test_a_plain_prompt_is_embedded_as_a_literal_one() -> None:
    with torch.no_grad():
        expected = TextEncoding(tokenizer(), encoder(), "cpu")("a red cat", clip_skip=None)
    for name in SYNTAXES:
        assert torch.equal(context("a red cat", syntax=name), expected)


def test_a1111_multiplies_and_restores_the_mean() -> None:
    found = context("a (red:1.5) [cat]")
    raw = hidden(*ids_of("a red cat"))
    weights = torch.tensor([1, 1, 1.5, 1 / 1.1] + [1.0] * 73)[:, None]
    expected = raw * weights
    expected = expected * raw.mean() / expected.mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.mean(), raw.mean())
    torch.testing.assert_close(context("a (red:1.5) [cat]", syntax="a1111-no-norm"), raw * weights)


def test_comfyui_goes_from_the_empty_prompt() -> None:
    found = context("a (red:1.5) (cat:0.2)", syntax="comfyui")
    raw, empty = hidden(*ids_of("a red cat")), hidden()
    weights = torch.tensor([1, 1, 1.5, 0.2] + [1.0] * 73)[:, None]
    torch.testing.assert_close(found, empty + (raw - empty) * weights)
    assert torch.equal(found[:, 4:], raw[:, 4:])


def test_a_mean_that_cannot_be_restored_stays_as_it_is() -> None:
    from sfumato.text.weighting import restoring_mean

    chunk = torch.tensor([[1.0], [1.0], [2.0]])
    weights = torch.tensor([1.0, 1.0, -1.0])
    assert torch.equal(restoring_mean(chunk, weights, lambda: chunk), chunk * weights[:, None])


def test_each_chunk_of_a_long_prompt_is_embedded_by_itself() -> None:
    words = ids_of("cat " * 100)
    found = context("cat " * 100)
    assert found.shape == (1, 154, WIDTH)
    assert torch.equal(found, torch.cat([hidden(*words[:75]), hidden(*words[75:])], dim=1))


def test_the_mean_is_restored_chunk_by_chunk() -> None:
    found = context("(cat:1.5) BREAK dog")
    assert torch.equal(found[:, :77], context("(cat:1.5)"))
    assert torch.equal(found[:, 77:], hidden(*ids_of("dog")))


def test_what_is_shorter_is_filled_up_with_chunks_without_words() -> None:
    made = conditioned("a BREAK b", "a", negatives=["c", "c BREAK d BREAK e"])
    assert made.negative is not None
    positive, negative = made.positive.contexts[0], made.negative.contexts[0]
    assert positive.shape == negative.shape == (2, 231, WIDTH)
    assert torch.equal(positive[0, 154:], hidden()[0])
    assert torch.equal(negative[0, 77:], torch.cat([hidden()[0]] * 2))
    assert torch.equal(negative[1, 154:], hidden(*ids_of("e"))[0])


def test_an_embedding_does_not_depend_on_its_neighbours() -> None:
    pair = context("a (red:1.4) cat", "a dog, (((very))) old")
    assert torch.equal(pair[:1], context("a (red:1.4) cat"))
    assert torch.equal(pair[1:], context("a dog, (((very))) old"))


def test_layers_are_left_out_for_both_kinds_of_prompts() -> None:
    made = conditioned("cat", negatives=["cat"], clip_skip=1)
    assert made.negative is not None
    assert torch.equal(made.positive.contexts[0], made.negative.contexts[0])
    assert not torch.equal(made.positive.contexts[0], context("cat"))


def test_a_prompt_far_too_long_is_cut_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = context("a BREAK " * (MAX_CHUNKS + 3))
    assert found.shape[1] == 77 * MAX_CHUNKS
    assert f"first {75 * MAX_CHUNKS}" in caplog.text


def test_each_step_has_its_context() -> None:
    made = conditioned("a [red:blue:0.5] cat", negatives=["[x|y]"], steps=4, images=2)
    red, blue = made.positive.contexts
    assert torch.equal(red, context("a red cat", images=2))
    assert torch.equal(blue, context("a blue cat", images=2))
    assert list(made.positive.choice) == [0, 0, 1, 1]
    assert made.negative is not None and list(made.negative.choice) == [0, 1, 0, 1]
    both = made.join(lambda positive, negative: torch.cat([negative, positive]))
    assert list(both.choice) == [0, 1, 2, 3]
    assert torch.equal(both.contexts[2], torch.cat([made.negative.contexts[0], blue]))


def test_samplers_that_call_twice_per_step_see_each_context_twice() -> None:
    script = conditioned("[a|b]", steps=3).positive
    by_row = script.spread(6)
    assert [int(by_row(row) is script.contexts[1]) for row in range(6)] == [0, 0, 1, 1, 0, 0]
    one_more = script.spread(4)  # as PNDM
    assert [int(one_more(row) is script.contexts[1]) for row in range(4)] == [0, 0, 1, 0]


def test_parts_are_blocks_with_weights() -> None:
    made = conditioned("a AND b :0.5", "c", negatives=["", ""], images=2)
    (blocks,) = made.positive.contexts
    first, second = context("a", "c", images=2), context(" b", "c", images=2)
    assert torch.equal(blocks, torch.cat([first, second]))
    assert made.weights == ((1, 0.5), (1, 0.5), (1, 0), (1, 0))
    assert conditioned("a").weights is None
    with pytest.raises(InputError, match="guidance"):
        conditioned("a AND b")
    assert conditioned("a AND b", syntax="comfyui").weights is None


def test_words_of_several_vectors_stay_together_in_a_chunk() -> None:
    words, network = CLIPTokenizer(), tiny_text_encoder(3)
    vectors = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    load_textual_inversion(words, network, {"<fruit>": vectors})
    encoding = TextEncoding(words, network, "cpu")
    first = words.convert_tokens_to_ids("<fruit>")
    before = ids_of("cat " * 73)
    found = context("cat " * 73 + "(<fruit>:1.2) x", syntax="a1111-no-norm", encoding=encoding)
    row = [BEGIN, first, first + 1, first + 2, *ids_of("x"), *[END] * 72]
    with torch.no_grad():
        second = network(torch.tensor([row]))[0]
    second[:, 1:4] *= 1.2
    torch.testing.assert_close(found[:, 77:], second)
    assert found.shape[1] == 154 and len(before) == 73
    comfy = context("an embedding:<fruit> here", syntax="comfyui", encoding=encoding)
    assert torch.equal(comfy, context("an <fruit> here", syntax="comfyui", encoding=encoding))


def test_a_vocabulary_that_pads_with_another_token_does_so_in_chunks() -> None:
    other = CLIPTokenizer(pad_token="!")
    found = context("cat", encoding=TextEncoding(other, encoder(), "cpu"))
    row = [BEGIN, *ids_of("cat"), END, *[0] * 74]
    with torch.no_grad():
        assert torch.equal(found, encoder()(torch.tensor([row]))[0])


def test_unknown_syntaxes_are_named() -> None:
    assert find_syntax(None) is None and find_syntax("literal") is None
    for wrong in ("a1112", 5):
        with pytest.raises(InputError, match="literal, a1111, a1111-no-norm, comfyui"):
            find_syntax(wrong)  # pyright: ignore[reportArgumentType]
