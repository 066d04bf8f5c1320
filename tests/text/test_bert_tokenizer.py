"""BERT's tokenizer: what is refused, what folders keep, and how it is loaded with a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sfumato import (
    BertTokenizer,
    CheckpointError,
    InputError,
    ModelNotFoundError,
    TokenizerError,
    UnknownKeywordError,
)

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a cat ##s the".split()  # noqa: SIM905


def write(folder: Path, **files: bytes | str) -> Path:
    for name, content in files.items():
        raw = content.encode() if isinstance(content, str) else content
        (folder / name.replace("__", ".")).write_bytes(raw)
    return folder


def test_a_folder_without_vocabulary_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"neither `vocab\.txt` nor .*does not come with"):
        BertTokenizer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError):
        BertTokenizer(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"vocab__txt": b"\xff\xfe"}, "not UTF-8"),
        ({"vocab__txt": "a\nb\n"}, r"no token '\[UNK\]'"),
        ({"vocab__txt": "\n".join([*WORDS, "a"])}, "each once"),
        ({"tokenizer__json": "[]"}, "object in braces"),
        ({"tokenizer__json": "{}"}, "not of a WordPiece"),
        ({"tokenizer__json": json.dumps({"model": {"type": "BPE", "vocab": {}}})}, "WordPiece"),
        ({"tokenizer__json": json.dumps({"model": {"vocab": {}}})}, "has to be a list of tokens"),
        ({"tokenizer__json": json.dumps({"model": {"vocab": {"a": -1}}})}, "each once"),
        ({"tokenizer__json": json.dumps({"model": {"vocab": {"a": [0]}}})}, "each once"),
        ({"vocab__txt": "\n".join(WORDS), "tokenizer_config__json": "{"}, "not JSON"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        BertTokenizer.from_pretrained(write(tmp_path, **files))


def test_strange_settings_in_a_file_are_passed_over(tmp_path: Path) -> None:
    config = {"model_max_length": 1e30, "do_lower_case": "yes", "cls_token": 3, "unknown": []}
    write(tmp_path, vocab__txt="\r\n".join(WORDS), tokenizer_config__json=json.dumps(config))
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    assert tokenizer.model_max_length == 512 and tokenizer.do_lower_case is True
    assert tokenizer("The cats").input_ids == [2, 8, 6, 7, 3]
    with pytest.raises(UnknownKeywordError, match="do_lowercase"):
        BertTokenizer.from_pretrained(tmp_path, do_lowercase=False)
    with pytest.raises(UnknownKeywordError, match="bos_token"):
        BertTokenizer(WORDS, bos_token="a")


def test_special_tokens_may_have_other_names(tmp_path: Path) -> None:
    words = [word.replace("[CLS]", "<s>") for word in WORDS]
    BertTokenizer(words, cls_token="<s>").save_pretrained(tmp_path)
    again = BertTokenizer.from_pretrained(tmp_path)
    assert again("a").input_ids == [2, 5, 3]
    assert again.convert_ids_to_tokens([2, 5]) == ["<s>", "a"]
    assert again.convert_tokens_to_ids(["a", "dog"]) == [5, 1]


def test_any_text_becomes_ids() -> None:
    tokenizer = BertTokenizer(WORDS)
    for text in ("\ud800", "a\ud800cat", "\x00", "a" * 100_000, "\u202ecat", "[CLS][SEP]"):
        ids = tokenizer(text, padding="max_length", max_length=7, truncation=True).input_ids
        assert len(ids) == 7 and set(ids) <= set(range(len(WORDS)))
    for wrong in (None, 3, ["a", 3]):
        with pytest.raises(InputError):
            tokenizer(wrong)  # type: ignore[arg-type]
