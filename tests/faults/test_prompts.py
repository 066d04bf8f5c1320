"""Prompts that break things elsewhere: empty, huge, hostile, of the wrong type or shape."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.pipelines.tiny import WIDTH, seeded, tiny_pipeline, tiny_scheduler


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return tiny_pipeline(scheduler=tiny_scheduler("DDIMScheduler"))


def _latents(pipe: Any, **arguments: Any) -> torch.Tensor:
    call = {"num_inference_steps": 1, "generator": seeded(1), "output_type": "latent"}
    return pipe(**{**call, **arguments}).images


@pytest.mark.parametrize("prompt", ["", "   ", "()", "\n\t", "[]", "((()))"])
def test_a_prompt_without_words_draws(pipe: StableDiffusionPipeline, prompt: str) -> None:
    assert _latents(pipe, prompt=prompt, negative_prompt=prompt).isfinite().all()


@pytest.mark.parametrize(
    "prompt",
    ["word " * 200_000, "a" * 50_000, "🦊" * 100_000, "(" * 10_000, "[a|" * 10_000, "\\" * 100_000],
    ids=["a million letters", "one word", "emoji", "brackets", "alternatives", "backslashes"],
)
def test_a_huge_prompt_is_cut_with_a_warning(
    pipe: StableDiffusionPipeline, prompt: str, caplog: pytest.LogCaptureFixture
) -> None:
    start = time.process_time()
    assert _latents(pipe, prompt=prompt).isfinite().all()
    assert time.process_time() - start < 60  # linear: a quadratic tokenizer would take hours
    assert "was truncated because CLIP can only handle" in caplog.text
    assert len(caplog.text) < 10_000


@pytest.mark.parametrize(
    "prompt",
    [
        "(x:1.2.3)",
        "(x:nan)",
        "(x:1e999)",
        "(x:-5)",
        "(x:)",
        "[a:b:999999999]",
        "[a:b:-1]",
        "a\0b",
        "\ud800 alone",
        "\u202eright to left\u200b",
        "👩‍👩‍👧‍👦 family",
        "Negative prompt: x\nSteps: 20, Sampler: x, Seed: 1",
        "<script>alert(1)</script>",
        "<lora:../../etc/passwd:1>",
        "<sd_cpp_extra_args>{}</sd_cpp_extra_args>",
        "$(touch canary) `id` %s %n {0} {prompt}",
        "\x1b[31m\r\b",
        "<|startoftext|> a <|endoftext|> b",
    ],
)
def test_a_strange_prompt_is_plain_text(pipe: StableDiffusionPipeline, prompt: str) -> None:
    assert _latents(pipe, prompt=[prompt], negative_prompt=[prompt]).isfinite().all()


EMBEDS = torch.zeros(1, 77, WIDTH)

WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "Provide either `prompt` or `prompt_embeds`"),
    ({"prompt": 3}, "`prompt` has to be of type `str` or `list`"),
    ({"prompt": b"bytes"}, "`prompt` has to be of type `str` or `list`"),
    ({"prompt": ("a", "b")}, "`prompt` has to be of type `str` or `list`"),
    ({"prompt": {"a": 1}}, "`prompt` has to be of type `str` or `list`"),
    ({"prompt": []}, "`prompt` is an empty list"),
    ({"prompt": ["a", None]}, "`prompt` has to be a list of `str`"),
    ({"prompt": [["a"]]}, "`prompt` has to be a list of `str`"),
    ({"prompt": "a", "negative_prompt": 3}, "`negative_prompt`"),
    ({"prompt": "a", "negative_prompt": ["b"]}, "same type to `prompt`"),
    ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "has batch size 1"),
    ({"prompt": ["a"], "negative_prompt": [None]}, "`negative_prompt` has to be a list of `str`"),
    ({"prompt": "a", "prompt_embeds": EMBEDS}, "Cannot forward both `prompt`"),
    ({"prompt_embeds": EMBEDS[0]}, "`prompt_embeds` has to be a floating-point tensor"),
    ({"prompt_embeds": EMBEDS.int()}, "`prompt_embeds` has to be a floating-point tensor"),
    ({"prompt_embeds": "a"}, "`prompt_embeds` has to be a floating-point tensor"),
    ({"prompt_embeds": EMBEDS[:, :0]}, "`prompt_embeds` is empty"),
    ({"prompt_embeds": EMBEDS / 0}, "`prompt_embeds` has values that are NaN"),
    ({"prompt_embeds": torch.zeros(1, 77, 768)}, "attends to vectors of width 32"),
    ({"prompt_embeds": EMBEDS, "negative_prompt_embeds": EMBEDS[:, :5]}, "same shape"),
    ({"prompt_embeds": EMBEDS, "negative_prompt_embeds": EMBEDS / 0}, "`negative_prompt_embeds`"),
    (
        {"prompt": "a", "negative_prompt": "b", "negative_prompt_embeds": EMBEDS},
        "Cannot forward both `negative_prompt`",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_prompts_are_value_errors(
    pipe: StableDiffusionPipeline, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        _latents(pipe, **arguments)
    assert isinstance(caught.value, SfumatoError)
    assert len(str(caught.value)) < 1000


def test_a_huge_wrong_prompt_is_shortened_in_the_message(pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(ValueError, match="Cannot forward both") as caught:
        _latents(pipe, prompt="x" * 10**6, prompt_embeds=EMBEDS)
    assert len(str(caught.value)) < 1000
