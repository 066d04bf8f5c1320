"""Texts to rows of ids, cut and padded as asked: what callers of any tokenizer ask for alike.

`CLIPTokenizer` and `BertTokenizer` differ in how they split text and in their special tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from sfumato.errors import InputError
from sfumato.text.batch_encoding import BatchEncoding, as_tensor, pad_rows
from sfumato.text.bpe import without_surrogates
from sfumato.text.token_table import check_side

#: The longest text, in tokens, that padding or truncation may be asked for.
_MAX_LENGTH = 1_000_000


class TextToIds:
    """The call of a tokenizer; a subclass has the attributes and ids of special tokens."""

    backend_tokenizer: Tokenizer
    model_max_length: int
    padding_side: str
    truncation_side: str

    def _special_ids(self) -> tuple[int, int, int]:
        """The ids before and after every text, and the one that fills up short texts."""
        raise NotImplementedError

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
        return_length: bool = False,
    ) -> BatchEncoding:
        """Turn texts into ids.

        Args:
            text: one text or a list of them.
            padding: ``True`` or ``"longest"``, ``"max_length"``, or ``False`` or ``"do_not_pad"``.
            truncation: ``True`` (or ``"longest_first"``, ``"only_first"``) cuts what exceeds
                ``max_length``; so does ``None`` when ``max_length`` is given without ``padding``.
            max_length: default `model_max_length`.
            add_special_tokens: put one special token before and one after.
            pad_to_multiple_of: pad up to a multiple of this.
            padding_side: in place of the tokenizer's own.
            return_tensors: ``"pt"`` for torch, ``"np"`` for NumPy, ``None`` for lists. A single
                text makes a tensor of one row, but a plain list.

        Raises:
            InputError: for another type of text, or a contradictory length.
        """
        texts = _texts(text)
        first, last, filling = self._special_ids()
        rows = [self._encode_plain(t) for t in texts]
        limit = self.model_max_length if max_length is None else max_length
        if type(limit) is not int or not 0 <= limit <= _MAX_LENGTH:
            raise InputError(
                f"`max_length` has to be an integer from 0 to {_MAX_LENGTH} but is {limit!r}."
            )
        if _truncates(truncation, padding, max_length):
            rows = [self._cut(row, limit - 2 * add_special_tokens, limit) for row in rows]
        if add_special_tokens:
            rows = [[first, *row, last] for row in rows]
        length = _padded_length(rows, padding, limit, pad_to_multiple_of)
        side = (
            self.padding_side if padding_side is None else check_side("padding_side", padding_side)
        )
        padded, masks = pad_rows(rows, filling, length, side)

        batch: dict[str, list[Any]] = {"input_ids": padded}
        if return_attention_mask:
            batch["attention_mask"] = masks
        if return_length:
            batch["length"] = [len(row) for row in padded]
        if return_tensors is not None:
            return BatchEncoding({k: as_tensor(v, return_tensors) for k, v in batch.items()})
        if isinstance(text, str):
            return BatchEncoding({k: v[0] if k != "length" else v for k, v in batch.items()})
        return BatchEncoding(batch)

    def encode(self, text: str, **options: Any) -> Any:
        """The ids of one text; options as for calling the tokenizer."""
        return self(text, **options)["input_ids"]

    def _encode_plain(self, text: str) -> list[int]:
        clean = without_surrogates(text)
        return self.backend_tokenizer.encode(clean, add_special_tokens=False).ids

    def _cut(self, row: list[int], room: int, limit: int) -> list[int]:
        if room < 0:
            raise InputError(
                f"`max_length` has to be at least 2, for the special tokens, but is {limit}."
            )
        if len(row) <= room:
            return row
        return row[:room] if self.truncation_side == "right" else row[len(row) - room :]


def _texts(text: str | Sequence[str]) -> list[str]:
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list | tuple):
        raise InputError(f"`text` has to be of type `str` or `list` but is {type(text)}.")
    for item in texts:
        if not isinstance(item, str):
            raise InputError(f"Every text has to be of type `str` but one is {type(item)}.")
    return list(texts)


def _truncates(truncation: bool | str | None, padding: bool | str, max_length: int | None) -> bool:
    if truncation is None:
        return max_length is not None and padding is False
    if truncation in (True, "longest_first", "only_first"):
        return True
    if truncation in (False, "do_not_truncate"):
        return False
    raise InputError(
        f"`truncation` has to be True, False or 'longest_first' but is {truncation!r}."
    )


def _padded_length(
    rows: list[list[int]], padding: bool | str, limit: int, multiple: int | None
) -> int:
    """To how many tokens all rows are padded; 0 for no padding."""
    if padding in (False, "do_not_pad"):
        return 0
    if padding in (True, "longest"):
        length = max((len(row) for row in rows), default=0)
    elif padding == "max_length":
        length = limit
    else:
        raise InputError(
            f"`padding` has to be True, False, 'longest' or 'max_length' but is {padding!r}."
        )
    return -(-length // multiple) * multiple if multiple else length
