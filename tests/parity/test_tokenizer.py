"""The tokenizer against transformers: equal ids for any text, and folders read both ways."""

from __future__ import annotations

import json
import operator
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import CLIPTokenizer as SlowOracle
from transformers import CLIPTokenizerFast as FastOracle

from sfumato.text.tokenizer import CLIPTokenizer

OURS = CLIPTokenizer()

#: What people write in prompts, and what goes wrong with it.
PHRASES = [
    "a photo of a cat", "A Red APPLE", "it's", "don't", "we'll've", "o'clock", "'S", "1girl", "8k",
    "(masterpiece:1.2)", "[a|b]", "{x}", "<lora:x:0.8>", "$(rm -rf)", "%s%n", "\\\\", "--ar 16:9",
    "...", "!!", "?!", "a.b,c", "C++", "50%", "€5", "½", "²", "\ufb01ne", "\uff57\uff49de",
    "na\xefve", "nai\u0308ve", "STRASSE", "straße", "İstanbul", "ΑΘΗΝΑΣ", "Москва", "שלום", "مرحبا",
    "नमस्ते", "สวัสดี", "漢字", "カナ", "한국어", "👩\u200d👩\u200d👧", "🇩🇪", "👍🏽", "🤖",
    "\u200b", "\u200d", "\u202e", "\ufeff", "\ufffd", "\x00", "\x07", "\x1b[31m", "\x7f", "\x85",
    "\xa0", "\u2028", "\u3000", "\t", "\n", "\r\n", "   ", "<|startoftext|>", "<|endoftext|>",
    "<|ENDOFTEXT|>", "<|endoftext", "</w>", "#version: 0.2", "\U0001d4d0", "\U0010ffff",
    "Z\u0351\u0352a\u0353\u0354l\u0355g\u0356o",
]  # fmt: skip

FRAGMENTS = st.sampled_from(PHRASES) | st.text("ab'!<|> \n", max_size=6)
ANY_TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.lists(st.sampled_from(PHRASES), max_size=12).map(" ".join),
    st.lists(FRAGMENTS, max_size=12).map("".join),
)


def is_plain(character: str) -> bool:
    """Whether transformers' two tokenizers treat the character alike."""
    if "CJK" in unicodedata.name(character, "") or character in "Σſ\ufffd":
        return False
    return unicodedata.category(character)[0] != "C"


PLAIN_TEXT = st.text(
    st.characters(exclude_categories=["C"]).filter(is_plain), max_size=40
) | st.lists(st.sampled_from([p for p in PHRASES if all(map(is_plain, p))]), max_size=12).map(
    " ".join
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    OURS.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def fast(folder: Path) -> FastOracle:
    return FastOracle.from_pretrained(folder)


@pytest.fixture(scope="module")
def slow(folder: Path) -> SlowOracle:
    tokenizer = SlowOracle.from_pretrained(folder)
    assert tokenizer.fix_text is None, "this comparison is with the tokenizer without ftfy"
    return tokenizer


def assert_same(actual: Any, expected: Any) -> None:
    assert list(actual.keys()) == list(expected.keys())
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(actual[key], value)
            assert actual[key].dtype == value.dtype
        else:
            assert type(actual[key]) is type(value)
            equal = np.array_equal if isinstance(value, np.ndarray) else operator.eq
            assert equal(actual[key], value)


@settings(max_examples=2000)
@given(ANY_TEXT)
@example("漢字 and ΑΣ and \x00\x01")
def test_ids_and_text_of_anything_equal_those_of_the_fast_tokenizer(
    fast: FastOracle, text: str
) -> None:
    ids = OURS(text).input_ids
    assert ids == fast(text).input_ids
    assert OURS.tokenize(text) == [fast.convert_ids_to_tokens(i) for i in ids[1:-1]]
    for skip in (False, True):
        for clean in (None, False, True):
            expected = fast.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean
            )
            assert OURS.decode(ids, skip, clean) == expected


@settings(max_examples=1000)
@given(PLAIN_TEXT)
def test_ids_of_plain_text_equal_those_of_the_slow_tokenizer(slow: SlowOracle, text: str) -> None:
    assert OURS(text).input_ids == slow(text).input_ids


@settings(max_examples=300)
@given(st.lists(ANY_TEXT, min_size=1, max_size=4), st.booleans(), st.data())
def test_every_option_of_a_call_gives_the_same_batch(
    fast: FastOracle, texts: list[str], single: bool, data: st.DataObject
) -> None:
    padding = data.draw(st.sampled_from([False, True, "longest", "max_length", "do_not_pad"]))
    options: dict[str, Any] = {
        "padding": padding,
        "truncation": data.draw(st.sampled_from([None, True, False, "longest_first"])),
        "max_length": data.draw(st.none() | st.integers(3, 80)),
        "add_special_tokens": data.draw(st.booleans()),
        "return_attention_mask": data.draw(st.booleans()),
        "return_length": data.draw(st.booleans()),
        "padding_side": data.draw(st.sampled_from([None, "left", "right"])),
    }
    if padding not in (False, "do_not_pad") and not options["truncation"]:
        options["pad_to_multiple_of"] = data.draw(st.sampled_from([None, 8]))
    if single or padding in (True, "longest"):
        options["return_tensors"] = data.draw(st.sampled_from([None, "np", "pt"]))
    text = texts[0] if single else texts
    assert_same(OURS(text, **options), fast(text, **options))


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_on_either_side_is_the_same(folder: Path, side: str) -> None:
    text = "one two three four five six seven"
    ours = CLIPTokenizer.from_pretrained(folder, truncation_side=side)
    oracle = FastOracle.from_pretrained(folder, truncation_side=side)
    for length in range(2, 10):
        options = {"max_length": length, "truncation": True}
        assert ours(text, **options).input_ids == oracle(text, **options).input_ids


@pytest.mark.parametrize("oracle_class", [SlowOracle, FastOracle])
def test_the_oracles_read_a_saved_folder_alike(tmp_path: Path, oracle_class: type[Any]) -> None:
    ours = CLIPTokenizer(pad_token="!", model_max_length=64, padding_side="left")
    ours.add_tokens(["<cat-toy>", "<cat-toy>_1", AddedToken("zqx", single_word=True)])
    ours.save_pretrained(tmp_path)
    oracle = oracle_class.from_pretrained(tmp_path)
    assert len(oracle) == len(ours) == 49411
    assert oracle.get_vocab() == ours.get_vocab()
    assert oracle.model_max_length == 64
    for role in ("bos", "eos", "unk", "pad"):
        assert getattr(oracle, f"{role}_token") == getattr(ours, f"{role}_token")
        assert getattr(oracle, f"{role}_token_id") == getattr(ours, f"{role}_token_id")
    assert oracle.padding_side == "left"
    for text in ("a <cat-toy> here!", "<cat-toy>_1<cat-toy>", "zqx here", "wow!!"):
        options = {"padding": "max_length", "truncation": True}
        assert_same(ours(text, **options), oracle(text, **options))
    assert ours.added_tokens_encoder == oracle.added_tokens_encoder
    assert ours.get_added_vocab() == oracle.get_added_vocab()


@pytest.mark.parametrize(
    ("oracle_class", "missing"),
    [(SlowOracle, []), (FastOracle, []), (FastOracle, ["vocab.json"])],
    ids=["slow", "fast", "tokenizer.json-alone"],
)
def test_a_folder_of_the_oracles_reads_alike(
    folder: Path, tmp_path: Path, oracle_class: type[Any], missing: list[str]
) -> None:
    oracle = oracle_class.from_pretrained(folder, model_max_length=32, pad_token="!")
    oracle.add_tokens(["<one>", "<two>"])
    oracle.save_pretrained(tmp_path)
    for name in missing:
        (tmp_path / name).unlink()
    ours = CLIPTokenizer.from_pretrained(tmp_path)
    assert ours.model_max_length == 32
    assert ours.get_vocab() == oracle.get_vocab()
    assert ours.special_tokens_map == oracle.special_tokens_map
    for text in ("a <one><two>!", "<|endoftext|> x !"):
        options = {"padding": "max_length", "truncation": True}
        assert_same(ours(text, **options), oracle(text, **options))


#: The files of the tokenizers that were published with Stable Diffusion 1.x and 2.x.
_BOS, _EOS = (
    {"content": f"<|{word}oftext|>", "lstrip": False, "normalized": True, "rstrip": False}
    for word in ("start", "end")
)
PUBLISHED_CONFIG = {
    "add_prefix_space": False,
    "bos_token": {"__type": "AddedToken", **_BOS, "single_word": False},
    "do_lower_case": True,
    "eos_token": {"__type": "AddedToken", **_EOS, "single_word": False},
    "errors": "replace",
    "model_max_length": 77,
    "name_or_path": "openai/clip-vit-large-patch14",
    "pad_token": "<|endoftext|>",
    "special_tokens_map_file": "./special_tokens_map.json",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": {"__type": "AddedToken", **_EOS, "single_word": False},
}


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"], ids=["sd1", "sd2"])
@pytest.mark.parametrize("added", [{}, {"<old>": 49408}], ids=["plain", "with-added"])
def test_folders_as_published_give_the_same_batches(
    folder: Path, tmp_path: Path, pad: str, added: dict[str, int]
) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(folder / name)
    special = {"bos_token": _BOS, "eos_token": _EOS, "pad_token": pad, "unk_token": _EOS}
    files = {
        "tokenizer_config.json": PUBLISHED_CONFIG,
        "special_tokens_map.json": special,
        "added_tokens.json": added,
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    ours = CLIPTokenizer.from_pretrained(tmp_path)
    assert ours.pad_token == pad
    assert ours.pad_token_id == {"!": 0, "<|endoftext|>": 49407}[pad]
    for oracle in (SlowOracle.from_pretrained(tmp_path), FastOracle.from_pretrained(tmp_path)):
        for text in ("a cat! <old>", "", "wow!!! ! x<|endoftext|>"):
            options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
            assert_same(ours(text, **options), oracle(text, **options))


SMALL = [
    "l",
    "o",
    "w",
    "e",
    "r",
    "s",
    "l</w>",
    "o</w>",
    "w</w>",
    "r</w>",
    "lo",
    "er</w>",
    "low</w>",
]


@settings(max_examples=200)
@given(st.text("lower sé!", max_size=20))
def test_a_small_vocabulary_with_an_unknown_token_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "small"
    if not path.exists():
        path.mkdir()
        tokens = [*dict.fromkeys(SMALL), "<unk>", "<|startoftext|>", "<|endoftext|>"]
        (path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
        (path / "merges.txt").write_text("#version: 0.2\nl o\nlo w</w>\ne r</w>\n")
        (path / "special_tokens_map.json").write_text(json.dumps({"unk_token": "<unk>"}))
    ours = CLIPTokenizer.from_pretrained(path)
    oracle = FastOracle.from_pretrained(path)
    assert ours(text).input_ids == oracle(text).input_ids


def test_words_and_special_tokens_added_later_are_found_alike(folder: Path) -> None:
    ours, oracle = CLIPTokenizer(), FastOracle.from_pretrained(folder)
    for tokenizer in (ours, oracle):
        assert tokenizer.add_tokens(["<Cat>", "<Cat>", "zqx"]) == 2
        assert tokenizer.add_tokens("<special>", special_tokens=True) == 1
        assert tokenizer.add_tokens(AddedToken("qzx", single_word=True, lstrip=True)) == 1
    for text in ("a <cat> <CAT> <Cat>", "azqxb ZQX", "x <special>y <SPECIAL>", "qzx aqzxb  qzx"):
        assert ours(text).input_ids == oracle(text).input_ids
        ids = ours(text).input_ids
        assert ours.decode(ids, True) == oracle.decode(ids, skip_special_tokens=True)


def test_conversions_are_the_same(fast: FastOracle) -> None:
    tokens = ["cat</w>", "no such token", "<|endoftext|>", "!"]
    assert OURS.convert_tokens_to_ids(tokens) == fast.convert_tokens_to_ids(tokens)
    assert OURS.convert_tokens_to_ids("cat</w>") == fast.convert_tokens_to_ids("cat</w>") == 2368
    ids = [0, 2368, 49406, 49407]
    for skip in (False, True):
        theirs = fast.convert_ids_to_tokens(ids, skip_special_tokens=skip)
        assert OURS.convert_ids_to_tokens(ids, skip_special_tokens=skip) == theirs
    assert OURS.convert_ids_to_tokens(320) == fast.convert_ids_to_tokens(320) == "a</w>"
    assert OURS.all_special_ids == fast.all_special_ids
    batch = [[320, 2368, 49407], [320, 49407]]
    assert OURS.batch_decode(batch) == fast.batch_decode(batch)
    assert OURS.vocab_size == fast.vocab_size == len(fast) == len(OURS) == 49408
