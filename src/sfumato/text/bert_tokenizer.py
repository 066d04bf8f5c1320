"""BERT's tokenizer: text to the ids that the paper's text-to-image model reads.

The work is done by the `tokenizers` library; ids are those of transformers' ``BertTokenizerFast``.
The vocabulary (``bert-base-uncased``, 30522 tokens) comes with the model's folder. It is a list of
words and parts of words, these marked by ``##``; a word is spelled by the longest that fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece

from sfumato.checkpoints.atomic import atomic_directory
from sfumato.checkpoints.files import checked_path, is_regular, shown
from sfumato.checkpoints.hub import local_copy
from sfumato.checkpoints.hub_files import tokenizer_files
from sfumato.checkpoints.hub_names import take_hub_options
from sfumato.checkpoints.jsonfile import write_json
from sfumato.checkpoints.keywords import reject_unknown
from sfumato.errors import ModelNotFoundError, TokenizerError
from sfumato.text.text_to_ids import TextToIds
from sfumato.text.token_table import check_side
from sfumato.text.vocabulary import read_json_object, read_text

#: The special tokens' roles and usual names, in the order of transformers.
_ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_SETTINGS = ("do_lower_case", "tokenize_chinese_chars", "strip_accents", "model_max_length")
_SIDES = ("padding_side", "truncation_side")

#: transformers writes 1e30 where it does not know the length.
_LARGEST_LENGTH = 1_000_000


class BertTokenizer(TextToIds):
    """WordPiece tokenizer with BERT's rules; callable.

    Args:
        vocab: the tokens in the order of their ids, or a mapping to ids, or a ``vocab.txt``.
        do_lower_case: make letters small.
        tokenize_chinese_chars: make each Chinese character a word.
        strip_accents: leave out accents; None does so in small letters.
        model_max_length: tokens that the text encoder takes, the two special ones included.
        padding_side, truncation_side: ``"right"`` or ``"left"``.
        roles: other names of ``unk_token``, ``sep_token``, ``pad_token``, ``cls_token`` and
            ``mask_token``.

    Raises:
        TokenizerError: the vocabulary cannot be used.
    """

    model_input_names = ("input_ids", "attention_mask")

    def __init__(
        self,
        vocab: str | PathLike[str] | Mapping[str, int] | Iterable[str],
        *,
        do_lower_case: bool = True,
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        model_max_length: int = 512,
        padding_side: str = "right",
        truncation_side: str = "right",
        **roles: str,
    ) -> None:
        reject_unknown("BertTokenizer()", roles, set(_ROLES))
        self.vocab = _table(vocab)
        self.do_lower_case, self.strip_accents = do_lower_case, strip_accents
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self.model_max_length = model_max_length
        self.padding_side = check_side("padding_side", padding_side)
        self.truncation_side = check_side("truncation_side", truncation_side)
        self.special_tokens_map = {**_ROLES, **roles}
        missing = [t for t in self.special_tokens_map.values() if t not in self.vocab]
        if missing:
            raise TokenizerError(
                f"The vocabulary has no token {missing[0][:40]!r}, which BERT's tokenizer needs.",
                hint="Is it BERT's? Another name can be given as an argument.",
            )
        self.backend_tokenizer = self._build()

    def _build(self) -> Tokenizer:
        backend = Tokenizer(WordPiece(self.vocab, unk_token=self.special_tokens_map["unk_token"]))
        backend.normalizer = normalizers.BertNormalizer(
            lowercase=self.do_lower_case,
            handle_chinese_chars=self.tokenize_chinese_chars,
            strip_accents=self.strip_accents,
        )
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        backend.add_special_tokens(
            [AddedToken(t, special=True, normalized=False) for t in self._special_tokens()]
        )
        return backend

    def _special_tokens(self) -> list[str]:
        return list(dict.fromkeys(self.special_tokens_map.values()))

    # Folders

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load from a folder that transformers or diffusers wrote, or from the hub.

        Read are ``vocab.txt``, or ``tokenizer.json`` where that is missing, and
        ``tokenizer_config.json``.

        Args:
            pretrained_model_name_or_path: the folder, or a name on the hub.
            subfolder: a folder in it, such as ``tokenizer``.
            kwargs: arguments of the constructor that go before what the files say; and how to ask
                the hub, see `sfumato.checkpoints.hub_names.HubOptions`.

        Raises:
            ModelNotFoundError: the folder or the vocabulary in it is missing.
            TokenizerError: the vocabulary cannot be used.
            UnknownKeywordError: there is no such argument.
        """
        given = dict(kwargs)
        hub = take_hub_options(given)
        known = {*_ROLES, *_SETTINGS, *_SIDES}
        reject_unknown("BertTokenizer.from_pretrained()", given, known)
        path = local_copy(
            pretrained_model_name_or_path, hub, lambda model: tokenizer_files(model, subfolder)
        )
        folder = checked_path(path) / (subfolder or "")
        config = folder / "tokenizer_config.json"
        said = _said(read_json_object(config) if is_regular(config) else {})
        return cls(_vocabulary_in(folder), **{**said, **given})

    def save_pretrained(self, save_directory: str | PathLike[str]) -> tuple[str, ...]:
        """Write a folder that transformers' BERT tokenizers load.

        Returns:
            The paths of the files.
        """
        folder = checked_path(save_directory)
        config = {name: getattr(self, name) for name in (*_SETTINGS, *_SIDES)}
        config |= {"tokenizer_class": "BertTokenizer", **self.special_tokens_map}
        with atomic_directory(folder) as temporary:
            text = "".join(f"{token}\n" for token in sorted(self.vocab, key=self.vocab.__getitem__))
            (temporary / "vocab.txt").write_text(text, encoding="utf-8")
            write_json(temporary / "tokenizer_config.json", config)
            write_json(temporary / "special_tokens_map.json", self.special_tokens_map)
        names = ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
        return tuple(str(folder / name) for name in names)

    # Ids and tokens

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The id of a token, or the ids of several; unknown ones have that of the unknown token."""
        if isinstance(tokens, str):
            return self.vocab.get(tokens, self.vocab[self.special_tokens_map["unk_token"]])
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: int | Iterable[int]) -> Any:
        """The token of an id, or the tokens of several; None for ids that do not exist."""
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(ids)
        return [self.backend_tokenizer.id_to_token(int(i)) for i in ids]

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of ids: small letters, and spaces around what was split."""
        ids = [int(i) for i in token_ids]
        return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""
        return dict(self.vocab)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return len(self.vocab)

    def __len__(self) -> int:
        return len(self.vocab)

    def __repr__(self) -> str:
        return f"BertTokenizer({len(self)} tokens, model_max_length={self.model_max_length})"

    def _special_ids(self) -> tuple[int, int, int]:
        names = self.special_tokens_map
        first, last, fill = (self.vocab[names[f"{r}_token"]] for r in ("cls", "sep", "pad"))
        return first, last, fill


def _table(vocab: str | PathLike[str] | Mapping[str, int] | Iterable[str]) -> dict[str, int]:
    """Token to id, the ids without gaps."""
    if isinstance(vocab, str | PathLike):
        text = read_text(Path(vocab)).removesuffix("\n")  # tokens may be other line breaks
        vocab = [line.removesuffix("\r") for line in text.split("\n")]
    if not isinstance(vocab, Mapping):
        vocab = {token: index for index, token in enumerate(vocab)}
    table = dict(vocab)
    if not table or not all(isinstance(token, str) for token in table):
        raise TokenizerError("A vocabulary has to be a list of tokens.")
    if sorted(map(str, table.values())) != sorted(map(str, range(len(table)))):
        raise TokenizerError(
            f"The ids of a vocabulary of {len(table)} tokens have to be 0 to {len(table) - 1}, "
            "each once.",
            hint="Does a token stand twice in the list?",
        )
    return table


def _vocabulary_in(folder: Path) -> Path | dict[str, int]:
    listed, whole = folder / "vocab.txt", folder / "tokenizer.json"
    if is_regular(listed):
        return listed
    if not is_regular(whole):
        raise ModelNotFoundError(
            f"The folder {shown(folder)} has no tokenizer: neither `vocab.txt` nor "
            "`tokenizer.json`.",
            hint="The vocabulary of BERT (bert-base-uncased) does not come with sfumato: copy "
            "its `vocab.txt` there, or pass `tokenizer=BertTokenizer('path/to/vocab.txt')`.",
        )
    model = read_json_object(whole).get("model")
    model = model if isinstance(model, dict) else {}
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or model.get("type", "WordPiece") != "WordPiece":
        raise TokenizerError(f"{shown(whole)} is not of a WordPiece tokenizer, as BERT's is.")
    return vocabulary


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a ``tokenizer_config.json`` gives."""
    said: dict[str, Any] = {}
    for name in _ROLES:
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            said[name] = value
    for name in ("do_lower_case", "tokenize_chinese_chars", "strip_accents"):
        if isinstance(config.get(name), bool):
            said[name] = config[name]
    length = config.get("model_max_length")
    if isinstance(length, int | float) and 2 <= length <= _LARGEST_LENGTH:
        said["model_max_length"] = int(length)
    return said | {name: config[name] for name in _SIDES if isinstance(config.get(name), str)}
