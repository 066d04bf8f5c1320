"""`encode_prompt` on its own: what goes beyond diffusers, and wrong arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sfumato.errors import InputError, SfumatoError, TokenizerError
from sfumato.text.clip import CLIPTextModel
from sfumato.text.conditioning import encode_prompt, maybe_convert_prompt
from sfumato.text.tokenizer import CLIPTokenizer

LAYERS = 2


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    encoder = CLIPTextModel(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        initializer_factor=20.0,
    )
    return {"tokenizer": CLIPTokenizer(), "text_encoder": encoder.eval(), "device": "cpu"}


def test_one_negative_text_serves_a_batch_of_embeddings(parts: dict[str, Any]) -> None:
    embeds = torch.randn(3, 77, 8)
    positive, negative = encode_prompt(
        None,
        **parts,
        prompt_embeds=embeds,
        negative_prompt="blurry",
        do_classifier_free_guidance=True,
        num_images_per_prompt=2,
    )
    expected, _ = encode_prompt("blurry", **parts)
    assert torch.equal(positive, embeds.repeat_interleave(2, dim=0))
    assert negative is not None
    assert torch.allclose(negative, expected.expand(6, -1, -1), atol=1e-6)


def test_the_negative_prompt_skips_layers_only_when_asked(parts: dict[str, Any]) -> None:
    texts = {"negative_prompt": "a cat", "do_classifier_free_guidance": True}
    for skip in range(1, LAYERS + 1):
        positive, negative = encode_prompt("a cat", **parts, **texts, clip_skip=skip)
        assert negative is not None
        assert not torch.allclose(positive, negative)
        assert torch.equal(negative, encode_prompt("a cat", **parts)[0])
        positive, negative = encode_prompt(
            "a cat", **parts, **texts, clip_skip=skip, clip_skip_negative=True
        )
        assert negative is not None
        assert torch.equal(positive, negative)


def test_skipping_no_layer_is_the_plain_result(parts: dict[str, Any]) -> None:
    skipped, _ = encode_prompt("a cat", **parts, clip_skip=0)
    assert torch.allclose(skipped, encode_prompt("a cat", **parts)[0], atol=1e-6)


def test_embeddings_alone_need_no_text_encoder() -> None:
    embeds = torch.randn(2, 77, 8, dtype=torch.float64)
    alone = {"tokenizer": None, "text_encoder": None, "device": "cpu"}
    positive, negative = encode_prompt(None, **alone, prompt_embeds=embeds)
    assert torch.equal(positive, embeds)
    assert negative is None
    positive, negative = encode_prompt(
        None,
        **alone,
        prompt_embeds=embeds,
        negative_prompt_embeds=-embeds,
        do_classifier_free_guidance=True,
        dtype=torch.bfloat16,
    )
    assert negative is not None
    assert positive.dtype == negative.dtype == torch.bfloat16
    assert torch.equal(positive, -negative)


def test_without_guidance_negative_embeddings_come_back_as_they_were(
    parts: dict[str, Any],
) -> None:
    given = torch.randn(1, 5, 8)
    _, negative = encode_prompt("a", **parts, negative_prompt_embeds=given)
    assert negative is given


def test_given_embeddings_take_the_type_of_the_text_encoder(parts: dict[str, Any]) -> None:
    embeds = torch.randn(1, 77, 8, dtype=torch.float64)
    assert encode_prompt(None, **parts, prompt_embeds=embeds)[0].dtype == torch.float32


def test_shapes_are_known_on_the_meta_device() -> None:
    with torch.device("meta"):
        encoder = CLIPTextModel(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    positive, negative = encode_prompt(
        ["a", "b"],
        tokenizer=CLIPTokenizer(),
        text_encoder=encoder,
        device="meta",
        do_classifier_free_guidance=True,
        num_images_per_prompt=2,
    )
    assert negative is not None
    assert positive.shape == negative.shape == (4, 77, 8)
    assert positive.device.type == "meta"


def test_prompts_of_any_kind_condition(parts: dict[str, Any]) -> None:
    for prompt in ("", "   ", "()", "\x00", "\ud800", "$(rm -rf ~); %s %n", "<sd_cpp_extra_args>"):
        embeds, _ = encode_prompt(prompt, **parts)
        assert embeds.shape == (1, 77, 8)
        assert torch.isfinite(embeds).all()


def test_a_long_cut_is_logged_in_part_and_on_one_line(
    parts: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    encode_prompt("word\nINFO: all is well\n" * 20_000, **parts)
    (record,) = caplog.records
    assert len(record.getMessage()) < 2500
    assert "\n" not in record.getMessage()


def several(*tokens: str) -> CLIPTokenizer:
    tokenizer = CLIPTokenizer()
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def test_tokens_of_several_vectors_are_written_out() -> None:
    tokenizer = several("<cat>", "<cat>_1", "<cat>_2", "<dog>", "<Big>", "<Big>_1")
    cases = {
        "a <cat> here": "a <cat> <cat>_1 <cat>_2 here",
        "<cat>,<cat>": "<cat> <cat>_1 <cat>_2,<cat> <cat>_1 <cat>_2",
        "a <dog>": "a <dog>",
        "<Big>": "<Big> <Big>_1",
        "<big>": "<Big> <Big>_1",
        "no token": "no token",
        "": "",
    }
    for prompt, expected in cases.items():
        assert maybe_convert_prompt(prompt, tokenizer) == expected
    assert maybe_convert_prompt(list(cases), tokenizer) == list(cases.values())
    assert maybe_convert_prompt("a <cat>", CLIPTokenizer()) == "a <cat>"


def test_every_vector_of_a_token_reaches_the_encoder() -> None:
    tokenizer = several("<cat>", "<cat>_1")
    encoder = CLIPTextModel(hidden_size=8, num_attention_heads=2, num_hidden_layers=1).eval()
    encoder.resize_token_embeddings(len(tokenizer))
    components = {"tokenizer": tokenizer, "text_encoder": encoder, "device": "cpu"}
    before, _ = encode_prompt("a <cat>", **components)
    with torch.no_grad():
        encoder.get_input_embeddings().weight[-1] += 1.0
    after, _ = encode_prompt("a <cat>", **components)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_ids_beyond_the_text_encoder_are_reported_with_the_remedy(parts: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match=r"49408.*resize_token_embeddings"):
        encode_prompt("a <cat>", **{**parts, "tokenizer": several("<cat>")})


EMBEDS = torch.zeros(2, 77, 8)
GUIDED = {"do_classifier_free_guidance": True}


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (None, {}, "Provide either `prompt` or `prompt_embeds`"),
        (5, {}, "`prompt` has to be of type `str` or `list` but is <class 'int'>"),
        (("a",), {}, "<class 'tuple'>"),
        ([], {}, "empty list"),
        (["a", None], {}, "holds a <class 'NoneType'>"),
        ("a", {"negative_prompt": 5, **GUIDED}, "`negative_prompt` has to be of type"),
        (["a"], {"negative_prompt": [5], **GUIDED}, "holds a <class 'int'>"),
        (["a"], {"negative_prompt": [], **GUIDED}, "`negative_prompt` is an empty list"),
        ("a", {"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ("a", {"num_images_per_prompt": 1.5}, "num_images_per_prompt"),
        ("a", {"clip_skip": LAYERS + 1}, "from 0 to 2"),
        ("a", {"clip_skip": -1}, "from 0 to 2"),
        ("a", {"clip_skip": 1.0}, "from 0 to 2"),
        (None, {"prompt_embeds": torch.zeros(77, 8)}, r"float32 \(77, 8\)"),
        (None, {"prompt_embeds": torch.zeros(1, 77, 8).long()}, "floating-point"),
        (None, {"prompt_embeds": "embeds"}, "floating-point"),
        (None, {"prompt_embeds": torch.zeros(0, 77, 8)}, "empty"),
        (None, {"prompt_embeds": EMBEDS * float("nan")}, "NaN"),
        (None, {"prompt_embeds": EMBEDS + float("inf")}, "NaN or infinite"),
        (
            None,
            {"prompt_embeds": EMBEDS, "negative_prompt_embeds": EMBEDS[:1], **GUIDED},
            r"\(2, 77, 8\) != \(1, 77, 8\)",
        ),
        (
            None,
            {"prompt_embeds": EMBEDS, "negative_prompt_embeds": EMBEDS / 0, **GUIDED},
            "`negative_prompt_embeds` has values that are NaN",
        ),
        (None, {"prompt_embeds": torch.zeros(1, 77, 9), **GUIDED}, "same shape"),
        (None, {"prompt_embeds": torch.zeros(1, 154, 8), **GUIDED}, "154 tokens"),
        (None, {"prompt_embeds": EMBEDS, "negative_prompt": ["a"], **GUIDED}, "batch size 2"),
    ],
)
def test_a_wrong_argument_is_named(
    parts: dict[str, Any], prompt: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        encode_prompt(prompt, **parts, **options)


def test_words_without_a_text_encoder_ask_for_embeddings() -> None:
    with pytest.raises(InputError, match="Pass `prompt_embeds`"):
        encode_prompt("a", tokenizer=CLIPTokenizer(), text_encoder=None, device="cpu")


def test_a_negative_prompt_of_another_type_is_a_type_error_of_ours(parts: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as caught:
        encode_prompt(["a"], **parts, negative_prompt="b", do_classifier_free_guidance=True)
    assert isinstance(caught.value, SfumatoError)
