"""Vocabularies from strangers and prompts that want to hurt: an error or ids, never a crash."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.errors import CheckpointError, SfumatoError, TokenizerError
from sfumato.text.tokenizer import CLIPTokenizer
from sfumato.text.vocabulary import MAX_FILE_BYTES
from tests.pipelines.tiny import tiny_pipeline, tiny_text_encoder

TOKENS = [*"abc", "a</w>", "b</w>", "c</w>", "ab", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
VOCAB = {token: index for index, token in enumerate(TOKENS)}
MERGES = "#version: 0.2\na b\na b</w>\n"


def write(folder: Path, vocab: Any = VOCAB, merges: str | bytes = MERGES, **files: Any) -> Path:
    content = vocab if isinstance(vocab, str) else json.dumps(vocab)
    (folder / "vocab.json").write_text(content)
    raw = merges if isinstance(merges, bytes) else merges.encode()
    (folder / "merges.txt").write_bytes(raw)
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / f"{name}.json").write_text(text)
    return folder


def test_the_small_vocabulary_itself_is_sound(tmp_path: Path) -> None:
    assert CLIPTokenizer.from_pretrained(write(tmp_path))("ab").input_ids == [8, 7, 9]


def without(token: str) -> dict[str, int]:
    return {t: i for i, t in enumerate(t for t in TOKENS if t != token)}


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        (without("<|endoftext|>"), r"<\|endoftext\|>"),
        (without("<|startoftext|>"), r"<\|startoftext\|>"),
        (without("ab"), "'ab', which is not in the vocabulary"),
        ({**VOCAB, "x": 10**6}, "'x' is 1000000"),
        ({**VOCAB, "x": 2**70}, "'x' is"),
        ({**VOCAB, "x": -1}, "'x' is -1"),
        ({**VOCAB, "x": 0}, "each once"),
        ({**VOCAB, "x": "10"}, "'x' is 10"),
        ({**VOCAB, "x": 10.0}, r"'x' is 10\.0"),
        ({**VOCAB, "x": True}, "'x' is True"),
        ({**VOCAB, "x": None}, "'x' is None"),
        ({**VOCAB, "\ud800": 10}, "not valid Unicode"),
        ({}, "no tokens"),
        ([*TOKENS], "list"),
        ("{", "vocab.json"),
        ("", "vocab.json"),
        ("[" * 100_000, "vocab.json"),
        ('{"a": ' + "9" * 5000 + "}", "vocab.json"),
        ('{"a": NaN}', "vocab.json"),
    ],
)
def test_a_bad_vocabulary_is_a_tokenizer_error(tmp_path: Path, vocab: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        CLIPTokenizer.from_pretrained(write(tmp_path, vocab))


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ("#version: 0.2\na b\nab\n", "Line 3"),
        ("#version: 0.2\na b c\n", "Line 2"),
        ("#version: 0.2\n\na b\n", "Line 2"),
        ("#version: 0.2\na zz\n", "'zz'"),
        ("#version: 0.2\nb a\n", "'ba'"),
        ("<html>404 Not Found</html>", "Line 1"),
        ("", "Line 1"),
        (b"\xff\xfe\x00a", "UTF-8"),
        ("\x00" * 100, "Line 1"),
        ("#version: 0.2\n" + "a" * 100_000, "Line 2"),
    ],
)
def test_bad_merges_are_a_tokenizer_error(
    tmp_path: Path, merges: str | bytes, message: str
) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        CLIPTokenizer.from_pretrained(write(tmp_path, merges=merges))
    assert len(str(caught.value)) < 400


def test_files_of_a_gigabyte_are_not_read(tmp_path: Path) -> None:
    for name in ("merges.txt", "vocab.json"):
        write(tmp_path)
        os.truncate(tmp_path / name, 2**30)  # sparse: takes no room on the disk
        with pytest.raises(TokenizerError, match=f"{MAX_FILE_BYTES // 2**20} MiB|{MAX_FILE_BYTES}"):
            CLIPTokenizer.from_pretrained(tmp_path)


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "vocab.json").unlink()
    os.mkfifo(tmp_path / "vocab.json")
    with pytest.raises(CheckpointError):
        CLIPTokenizer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError):
        CLIPTokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")


@pytest.mark.parametrize(
    "config",
    [
        {"model_max_length": "77"},
        {"model_max_length": 0},
        {"model_max_length": True},
        {"padding_side": "top"},
        {"padding_side": ["left"]},
        {"bos_token": 5},
        {"bos_token": {"content": None}},
        {"eos_token": "<none>"},
        {"pad_token": "<none>"},
        {"additional_special_tokens": "<x>"},
        {"additional_special_tokens": [5]},
        {"additional_special_tokens": ["\ud800"]},
        {"added_tokens_decoder": []},
        {"added_tokens_decoder": {"ten": {"content": "<x>"}}},
        {"added_tokens_decoder": {"12": {"content": "<x>"}}},
        {"added_tokens_decoder": {"3": {"content": "<x>"}}},
        {"added_tokens_decoder": {"-1": {"content": "<x>"}}},
        {"added_tokens_decoder": {"99999999999": {"content": "<x>"}}},
        {"added_tokens_decoder": {"10": {"content": ""}}},
        {"added_tokens_decoder": {"10": {"content": "\ud800"}}},
        {"added_tokens_decoder": {"10": "<x>"}},
        "[]",
        "{",
    ],
    ids=str,
)
def test_bad_settings_of_a_folder_are_an_error_of_ours(tmp_path: Path, config: Any) -> None:
    with pytest.raises((TokenizerError, ValueError)) as caught:
        CLIPTokenizer.from_pretrained(write(tmp_path, tokenizer_config=config))
    assert isinstance(caught.value, SfumatoError)


@pytest.mark.parametrize("length", [10**30, 1e30, None])
def test_a_length_that_was_not_known_is_that_of_clip(tmp_path: Path, length: object) -> None:
    folder = write(tmp_path, tokenizer_config={"model_max_length": length})
    assert CLIPTokenizer.from_pretrained(folder).model_max_length == 77


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": []},
        {"model": {"vocab": VOCAB}},
        {"model": {"vocab": VOCAB, "merges": ["a"]}},
        {"model": {"vocab": VOCAB, "merges": [["a", 5]]}},
        {"model": {"vocab": VOCAB, "merges": [5]}},
        {"model": {"vocab": [["a", 0.5]], "merges": []}},
        {"model": {"vocab": VOCAB, "merges": []}, "added_tokens": {}},
        {"model": {"vocab": VOCAB, "merges": []}, "added_tokens": [{"id": "x"}]},
    ],
    ids=str,
)
def test_a_bad_tokenizer_json_is_a_tokenizer_error(tmp_path: Path, content: Any) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError):
        CLIPTokenizer.from_pretrained(tmp_path)


def test_rules_in_a_tokenizer_json_are_not_run(tmp_path: Path) -> None:
    content = {
        "model": {"type": "BPE", "vocab": VOCAB, "merges": ["a b", ["a", "b</w>"]]},
        "normalizer": {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": "x"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert CLIPTokenizer.from_pretrained(tmp_path)("ab").input_ids == [8, 7, 9]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.sampled_from(["vocab", "merges", "tokenizer_config", "special_tokens_map"]), st.data())
def test_damaged_folders_load_or_raise_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, victim: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    write(folder, tokenizer_config={}, special_tokens_map={})
    if victim == "merges":
        (folder / "merges.txt").write_bytes(data.draw(st.binary(max_size=60)))
    elif victim == "vocab":
        change = data.draw(st.dictionaries(st.sampled_from(TOKENS) | st.text(max_size=3), JSON))
        (folder / "vocab.json").write_text(json.dumps({**VOCAB, **change}))
    else:
        keys = ["bos_token", "pad_token", "model_max_length", "added_tokens_decoder"]
        content = data.draw(st.dictionaries(st.sampled_from(keys), JSON | st.sampled_from(TOKENS)))
        (folder / f"{victim}.json").write_text(json.dumps(content))
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    except SfumatoError:
        return
    ids = tokenizer(data.draw(st.text(max_size=10)), padding=True).input_ids
    assert all(0 <= i < len(tokenizer) for i in ids)


def test_a_token_that_the_text_encoder_lacks_is_an_error_of_ours() -> None:
    """A vocabulary may be sound and of another model; the embedding has no row for its ids."""
    pipe = tiny_pipeline(text_encoder=tiny_text_encoder(vocab_size=600))
    with pytest.raises(
        TokenizerError, match="made the id 49407, but the text encoder has only 600"
    ):
        pipe("a cat", num_inference_steps=1, output_type="latent")


@pytest.mark.parametrize(
    "text",
    [
        "a red apple " * 90_000,
        "a" * 1_000_000,
        "a" + "\u0301" * 500_000,
        "\u0301\u0323" * 200_000,
        "漢" * 300_000,
        "!" * 1_000_000,
        "'" * 500_000,
        "\u200d" * 300_000,
        " \n\t" * 300_000,
        "(" * 500_000,
        "\\" * 500_000,
    ],
    ids=lambda text: ascii(text[:6]),
)
def test_a_prompt_of_a_megabyte_is_cut(text: str) -> None:
    """A step that took more than linear time would need hours for one of these."""
    batch = CLIPTokenizer()(text, padding="max_length", truncation=True)
    assert len(batch.input_ids) == 77


def test_one_word_of_fifty_thousand_letters_is_cut() -> None:
    ids = CLIPTokenizer()("x" * 50_000, truncation=True, max_length=77).input_ids
    assert len(ids) == 77
    assert (ids[0], ids[-1]) == (49406, 49407)
