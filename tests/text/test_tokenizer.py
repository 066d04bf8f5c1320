"""The tokenizer on its own: known ids, the batch, decoding, added tokens, folders."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.errors import InputError, ModelNotFoundError, TokenizerError, UnknownKeywordError
from sfumato.text.tokenizer import CLIPTokenizer
from sfumato.text.vocabulary import shipped_vocabulary

TOKENIZER = CLIPTokenizer()


def test_the_shipped_vocabulary_is_that_of_openai() -> None:
    vocabulary = shipped_vocabulary()
    assert len(vocabulary.tokens) == 49408
    assert len(vocabulary.merges) == 48894
    known = {"!": 0, "a": 64, "!</w>": 256, "a</w>": 320, "photo</w>": 1125, "cat</w>": 2368}
    assert {token: vocabulary.tokens[token] for token in known} == known
    assert TOKENIZER("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_the_assets_say_under_which_licence_they_are() -> None:
    import sfumato

    folder = Path(sfumato.__file__).parent / "assets"
    assert "OpenAI" in (folder / "clip_vocab.LICENSE").read_text()


def test_a_batch_reads_by_attribute_and_key_and_moves_to_a_device() -> None:
    batch = TOKENIZER(["a cat", "a dog"], padding=True, return_tensors="pt")
    assert batch.input_ids is batch["input_ids"]
    assert batch.attention_mask.shape == (2, 4)
    assert dict(**batch).keys() == {"input_ids", "attention_mask"}
    assert batch.to("meta") is batch
    assert batch.input_ids.device.type == "meta"
    with pytest.raises(AttributeError, match="token_type_ids"):
        _ = batch.token_type_ids
    assert TOKENIZER("a").to("cpu").input_ids == [49406, 320, 49407]


def test_stable_diffusion_2_pads_with_the_exclamation_mark() -> None:
    ids = CLIPTokenizer(pad_token="!")("hi", padding="max_length").input_ids
    assert ids == [49406, 1883, 49407] + [0] * 74


def test_decoding_takes_numbers_lists_arrays_and_tensors() -> None:
    ids = TOKENIZER("a photo").input_ids
    expected = "<|startoftext|>a photo <|endoftext|>"
    for form in (ids, tuple(ids), np.array(ids), torch.tensor(ids)):
        assert TOKENIZER.decode(form) == expected
        assert TOKENIZER.batch_decode([form, form], skip_special_tokens=True) == ["a photo"] * 2
    assert TOKENIZER.decode(320) == TOKENIZER.decode(torch.tensor(320)) == "a"
    assert TOKENIZER.convert_ids_to_tokens(np.array(ids[1:3])) == ["a</w>", "photo</w>"]
    assert TOKENIZER.convert_tokens_to_string(["a</w>", "photo</w>"]) == "a photo"
    assert TOKENIZER.decode([60_000]) == ""
    with pytest.raises(InputError, match="-1"):
        TOKENIZER.decode([320, -1])


def test_an_empty_list_makes_an_empty_batch() -> None:
    assert TOKENIZER([]).input_ids == []
    assert len(TOKENIZER([], padding="max_length", return_tensors="pt").input_ids) == 0


@given(st.text(st.sampled_from("abc \ud800\udc00\udfff😀\x00\u202e"), max_size=30))
def test_text_with_surrogates_and_control_characters_is_encoded(text: str) -> None:
    ids = TOKENIZER(text).input_ids
    assert (ids[0], ids[-1]) == (49406, 49407)
    assert all(0 <= i < 49408 for i in ids)
    TOKENIZER.decode(ids).encode("utf-8")


def test_a_pair_of_surrogates_is_the_character_it_stands_for() -> None:
    assert TOKENIZER("\ud83d\ude00").input_ids == TOKENIZER("😀").input_ids
    assert TOKENIZER("a\ud800b").input_ids == TOKENIZER("ab").input_ids


def test_added_tokens_follow_the_vocabulary() -> None:
    tokenizer = CLIPTokenizer()
    assert tokenizer.add_tokens(["<one>", "<two>"]) == 2
    assert tokenizer.add_tokens("<one>") == 0
    assert len(tokenizer) == 49410
    assert tokenizer.vocab_size == 49408
    assert tokenizer.convert_tokens_to_ids(["<one>", "<two>"]) == [49408, 49409]
    assert tokenizer.get_vocab()["<two>"] == 49409
    assert tokenizer("x <two>").input_ids == [49406, 343, 49409, 49407]
    assert tokenizer.added_tokens_encoder == tokenizer.get_added_vocab()
    assert "<one>" not in CLIPTokenizer().get_vocab(), "tokenizers are independent"


def test_copies_are_independent_and_equal() -> None:
    original = CLIPTokenizer(pad_token="!", model_max_length=20)
    original.add_tokens("<one>")
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert twin("a <one>", padding="max_length") == original("a <one>", padding="max_length")
        twin.add_tokens("<two>")
        assert len(twin) == len(original) + 1


def test_a_folder_keeps_everything(tmp_path: Path) -> None:
    original = CLIPTokenizer(
        pad_token="!",
        additional_special_tokens=["<mask>"],
        model_max_length=20,
        padding_side="left",
        truncation_side="left",
        clean_up_tokenization_spaces=True,
    )
    original.add_tokens(["<Cat>", "<cat>_1"])
    written = original.save_pretrained(tmp_path / "new" / "tokenizer")
    assert all(Path(file).is_file() for file in written)
    twin = CLIPTokenizer.from_pretrained(tmp_path / "new", subfolder="tokenizer", revision=None)
    for name in ("model_max_length", "padding_side", "truncation_side", "special_tokens_map"):
        assert getattr(twin, name) == getattr(original, name)
    assert twin.vocabulary == original.vocabulary
    assert twin.get_vocab() == original.get_vocab()
    assert repr(twin.added_tokens_decoder) == repr(original.added_tokens_decoder)
    assert twin.decode(twin("a, b").input_ids) == original.decode(twin("a, b").input_ids)
    assert CLIPTokenizer.from_pretrained(tmp_path / "new/tokenizer", model_max_length=9)(
        "a b", padding="max_length"
    ).attention_mask == [0, 0, 0, 0, 0, 1, 1, 1, 1]


def test_two_files_of_a_vocabulary_are_enough(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    files = (tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert CLIPTokenizer(*files)("a cat") == TOKENIZER("a cat")
    with pytest.raises(TokenizerError, match="together"):
        CLIPTokenizer(files[0])


def test_a_folder_without_a_tokenizer_is_reported_with_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"neither `vocab.json` with `merges.txt` nor"):
        CLIPTokenizer.from_pretrained(tmp_path)
    with pytest.raises(UnknownKeywordError, match="Did you mean 'model_max_length'"):
        CLIPTokenizer.from_pretrained(tmp_path, model_maxlength=77)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (5, {}, "`str` or `list`"),
        (None, {}, "`str` or `list`"),
        (["a", None], {}, "one is <class 'NoneType'>"),
        ([["a"]], {}, "one is <class 'list'>"),
        ("a", {"padding": "longer"}, "`padding`"),
        ("a", {"truncation": "only_second"}, "`truncation`"),
        ("a", {"padding_side": "top"}, "`padding_side`"),
        ("a", {"return_tensors": "tf"}, "`return_tensors`"),
        ("a", {"truncation": True, "max_length": 1}, "at least 2"),
        ("a", {"padding": "max_length", "max_length": 10**9}, "1000000"),
        ("a", {"padding": "max_length", "max_length": -1}, "-1"),
        ("a", {"max_length": 7.0}, r"7\.0"),
        (["a", "a b"], {"return_tensors": "pt"}, "padding=True"),
    ],
)
def test_an_impossible_call_says_what_is_wrong(
    text: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        TOKENIZER(text, **options)  # type: ignore[arg-type]


def test_tokenizing_needs_no_torch() -> None:
    program = (
        "import sys; from sfumato.text.tokenizer import CLIPTokenizer;"
        "CLIPTokenizer()('a', return_tensors='np'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_tokenizers_of_one_vocabulary_share_it_but_not_their_added_tokens(tmp_path: Path) -> None:
    first = CLIPTokenizer()
    first.save_pretrained(tmp_path / "a")
    first.save_pretrained(tmp_path / "b")
    one, two = (CLIPTokenizer.from_pretrained(tmp_path / name) for name in "ab")
    assert one.vocabulary is two.vocabulary
    one.add_tokens("<cat-toy>")
    assert (
        one("a <cat-toy>").input_ids
        != two("a <cat-toy>").input_ids
        == first("a <cat-toy>").input_ids
    )
    merges = tmp_path / "b" / "merges.txt"
    lines = merges.read_text("utf-8").splitlines(keepends=True)
    merges.write_text("".join(lines[:1000]), "utf-8")
    other = CLIPTokenizer.from_pretrained(tmp_path / "b")
    assert len(other.vocabulary.merges) == 999 != len(one.vocabulary.merges)
    assert other("a photograph").input_ids != one("a photograph").input_ids
