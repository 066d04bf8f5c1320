"""What a tokenizer returns: lists, NumPy arrays or torch tensors under their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from sfumato.errors import InputError

if TYPE_CHECKING:
    import torch


class BatchEncoding(dict[str, Any]):
    """A dictionary whose entries are attributes too: ``batch["input_ids"]``, ``batch.input_ids``.

    Its entries are ``input_ids`` and, if asked for, ``attention_mask`` (1 for tokens, 0 for
    padding) and ``length``.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The batch has no '{name}'; it has {list(self)}.") from None

    def to(self, device: str | torch.device) -> Self:
        """Move the tensors to a device, in place; lists and arrays stay."""
        for key, value in self.items():
            if hasattr(value, "to"):
                self[key] = value.to(device)
        return self


def pad_rows(
    rows: Sequence[list[int]], fill: int, length: int, side: str
) -> tuple[list[list[int]], list[list[int]]]:
    """Fill up rows to ``length`` on the left or the right side.

    Returns:
        The rows, and masks of the same shape with 1 for what was there and 0 for the filling.
        Longer rows stay as they are.
    """
    padded, masks = [], []
    for row in rows:
        gap = length - len(row)
        extra, zeros, ones = [fill] * gap, [0] * gap, [1] * len(row)
        left = side == "left"
        padded.append(extra + row if left else row + extra)
        masks.append(zeros + ones if left else ones + zeros)
    return padded, masks


def as_tensor(values: list[Any], kind: str) -> Any:
    """Integers in nested lists as a torch tensor (``"pt"``) or a NumPy array (``"np"``), int64.

    Raises:
        InputError: when the rows have different lengths, or ``kind`` is another word.
    """
    if kind not in ("pt", "np"):
        raise InputError(f"`return_tensors` has to be 'pt', 'np' or None but is {kind!r}.")
    if len({len(row) for row in values if isinstance(row, list)}) > 1:
        raise InputError(
            "The prompts have different numbers of tokens, so they make no tensor.",
            hint="Pass `padding=True` or `padding='max_length'`.",
        )
    if kind == "np":
        import numpy as np

        return np.array(values, dtype=np.int64)
    import torch

    return torch.tensor(values, dtype=torch.int64)
