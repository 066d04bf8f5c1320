"""`encode_prompt` against the method of diffusers' pipeline, with either pair of components."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from diffusers import DDIMScheduler, StableDiffusionPipeline

from sfumato.text.clip import CLIPTextModel
from sfumato.text.conditioning import encode_prompt
from sfumato.text.tokenizer import CLIPTokenizer

WORDS = ["a", "red", "Apple", "photo,", "of", "(cute)", "cat!", "é", "🤖", "8k", "it's", "<toy>"]
LAYERS = 3


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    """A pipeline of diffusers that has nothing but a tokenizer and a text encoder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    CLIPTokenizer().save_pretrained(folder)
    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=3,
        eos_token_id=2,
    )
    encoder = transformers.CLIPTextModel(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    tokenizer.add_tokens(["<toy>", "<toy>_1", "<toy>_2", "<single>"])
    encoder.resize_token_embeddings(len(tokenizer))
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=None,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def ours(oracle: StableDiffusionPipeline) -> dict[str, Any]:
    tokenizer = CLIPTokenizer()
    tokenizer.add_tokens(["<toy>", "<toy>_1", "<toy>_2", "<single>"])
    encoder = CLIPTextModel.from_config(oracle.text_encoder.config.to_dict()).eval()
    encoder.load_state_dict(oracle.text_encoder.state_dict())
    return {"tokenizer": tokenizer, "text_encoder": encoder}


def random_options(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.choice([0, 1, 5, 12, 120])))

    batch = rng.choice([None, 1, 2, 3])  # None: a plain text rather than a list
    generator = torch.Generator().manual_seed(seed)
    shape = (batch or 1, rng.choice([77, 40]), 24)
    options: dict[str, Any] = {
        "prompt": text() if batch is None else [text() for _ in range(batch)],
        "num_images_per_prompt": rng.choice([1, 1, 2, 3]),
        "do_classifier_free_guidance": rng.random() < 0.7,
        "clip_skip": rng.choice([None, *range(LAYERS + 1)]),
    }
    if rng.random() < 0.25:
        options["prompt"] = None
        options["prompt_embeds"] = torch.randn(shape, generator=generator)
    negative = rng.choice(["default", "text", "embeds"])
    if negative == "text":
        listed = batch is not None
        options["negative_prompt"] = [text() for _ in range(shape[0])] if listed else text()
    if negative == "embeds":
        length = shape[1] if options["prompt"] is None else 77
        options["negative_prompt_embeds"] = torch.randn((shape[0], length, 24), generator=generator)
    return options


def oracle_result(pipeline: StableDiffusionPipeline, options: dict[str, Any]) -> Any:
    with torch.no_grad():
        return pipeline.encode_prompt(device=torch.device("cpu"), **options)


@pytest.mark.parametrize("seed", range(80))
def test_random_options_give_the_embeddings_of_diffusers(
    oracle: StableDiffusionPipeline, ours: dict[str, Any], seed: int
) -> None:
    options = random_options(seed)
    expected = oracle_result(oracle, options)
    foreign = {"tokenizer": oracle.tokenizer, "text_encoder": oracle.text_encoder}
    with torch.no_grad():
        same_parts = encode_prompt(device="cpu", **foreign, **options)
        actual = encode_prompt(device="cpu", **ours, **options)
    for want, same, got in zip(expected, same_parts, actual, strict=True):
        if want is None:
            assert same is got is None
            continue
        assert torch.equal(same, want)
        assert got.shape == want.shape
        assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.mark.parametrize("oracle_class", ["CLIPTokenizer", "CLIPTokenizerFast"])
def test_the_text_that_was_cut_is_logged_in_the_words_of_diffusers(
    oracle: StableDiffusionPipeline,
    ours: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    oracle_class: str,
    tmp_path: Path,
) -> None:
    CLIPTokenizer().save_pretrained(tmp_path)
    theirs = getattr(transformers, oracle_class).from_pretrained(tmp_path)
    prompts = ["word " * 74 + "and then some more words", "short"]
    whole = theirs(prompts, padding="longest", return_tensors="pt").input_ids
    removed = theirs.batch_decode(whole[:, 76:-1])
    for tokenizer in (theirs, ours["tokenizer"]):
        caplog.clear()
        encode_prompt(prompts, tokenizer=tokenizer, text_encoder=ours["text_encoder"], device="cpu")
        messages = [r.getMessage() for r in caplog.records if r.name.startswith("sfumato")]
        assert messages == [
            "The following part of your input was truncated because CLIP can only handle "
            f"sequences up to 77 tokens: {removed}"
        ]
    assert "words" in removed[0]


def test_a_prompt_that_just_fits_is_not_called_cut(
    ours: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    for count in (0, 1, 74, 75):
        encode_prompt("cat " * count, **ours, device="cpu")
    assert not caplog.records
    encode_prompt("cat " * 76, **ours, device="cpu")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("masked", [False, True])
def test_the_attention_mask_is_used_when_the_configuration_says_so(
    oracle: StableDiffusionPipeline, ours: dict[str, Any], masked: bool
) -> None:
    options = {
        "prompt": ["a cat", ""],
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": True,
    }
    oracle.text_encoder.config.use_attention_mask = masked
    try:
        expected = oracle_result(oracle, options)
    finally:
        del oracle.text_encoder.config.use_attention_mask
    encoder = CLIPTextModel(ours["text_encoder"].config, use_attention_mask=masked).eval()
    encoder.load_state_dict(ours["text_encoder"].state_dict())
    parts = {"tokenizer": ours["tokenizer"], "text_encoder": encoder}
    for got, want in zip(encode_prompt(device="cpu", **parts, **options), expected, strict=True):
        assert got is not None
        assert (got - want).norm() <= 1e-5 * want.norm()


def test_half_precision_gives_the_type_and_nearly_the_numbers_of_diffusers(
    oracle: StableDiffusionPipeline, ours: dict[str, Any]
) -> None:
    options = {"num_images_per_prompt": 2, "do_classifier_free_guidance": True, "clip_skip": 1}
    expected = oracle_result(oracle, {"prompt": "a cat", **options})
    encoder = CLIPTextModel(ours["text_encoder"].config).eval()
    encoder.load_state_dict(ours["text_encoder"].state_dict())
    parts = {"tokenizer": ours["tokenizer"], "text_encoder": encoder.to(torch.bfloat16)}
    for got, want in zip(
        encode_prompt("a cat", device="cpu", **parts, **options), expected, strict=True
    ):
        assert got is not None
        assert got.dtype == torch.bfloat16
        assert (got - want).norm() <= 0.03 * want.norm()


@pytest.mark.parametrize(
    ("prompt", "negative"),
    [("a", ["b"]), (["a"], "b"), (["a", "b"], "c"), (["a", "b"], ["c"]), (["a"], ["b", "c"])],
)
def test_mismatched_negative_prompts_raise_as_in_diffusers(
    oracle: StableDiffusionPipeline, ours: dict[str, Any], prompt: Any, negative: Any
) -> None:
    options = {
        "prompt": prompt,
        "negative_prompt": negative,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": True,
    }
    with pytest.raises((TypeError, ValueError)) as theirs:
        oracle_result(oracle, options)
    with pytest.raises(type(theirs.value)) as mine:
        encode_prompt(device="cpu", **ours, **options)
    assert str(mine.value) == str(theirs.value)
