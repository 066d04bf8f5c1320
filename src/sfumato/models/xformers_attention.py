"""Attention by xformers' kernels, where they are installed and there is a CUDA device."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.errors import InputError, MissingDependencyError
from sfumato.models.processors import AttnProcessor2_0

#: xformers wants rows of a bias to begin at multiples of so many numbers in memory.
ALIGNMENT = 8


def require_xformers() -> Any:
    """The module ``xformers.ops``.

    Raises:
        MissingDependencyError: (a ``ModuleNotFoundError``) it is not installed, or does not fit
            this torch.
        InputError: (a ``ValueError``) there is no CUDA device.
    """
    if importlib.util.find_spec("xformers") is None:
        raise MissingDependencyError(
            "xformers is not installed.",
            hint="sfumato's attention needs as little memory without it: leave out this call.",
        )
    if not torch.cuda.is_available():
        raise InputError(
            "torch.cuda.is_available() should be True but is False. xformers' memory efficient"
            " attention is only available for GPU.",
            hint="Leave out this call.",
        )
    try:
        return importlib.import_module("xformers.ops")
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependencyError(
            f"xformers is installed but does not load: {error}.",
            hint="Install the version that was built for this version of torch.",
        ) from error


class XFormersAttnProcessor(AttnProcessor2_0):
    """The usual path, with xformers' kernel in place of torch's.

    Args:
        attention_op: the pair of operators that xformers shall use; None lets it choose.

    Raises:
        MissingDependencyError, InputError: see `require_xformers`.
    """

    def __init__(self, attention_op: Any = None) -> None:
        self.attention_op = attention_op
        self._kernel = require_xformers().memory_efficient_attention

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        if bias is not None:
            bias = _aligned(bias.expand(*q.shape[:3], k.shape[2])).to(q.dtype)
        tokens_first = (t.transpose(1, 2) for t in (q, k, v))
        out = self._kernel(*tokens_first, attn_bias=bias, op=self.attention_op, scale=scale)
        return out.to(q.dtype).transpose(1, 2)


def _aligned(bias: Tensor) -> Tensor:
    """The bias, with room behind each row in memory."""
    keys = bias.shape[-1]
    return F.pad(bias, (0, -keys % ALIGNMENT)).contiguous()[..., :keys]
