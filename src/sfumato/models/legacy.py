"""Weight names of old diffusers folders, as the names of today.

Until diffusers 0.18 an autoencoder's attention was called ``query``, ``key``, ``value`` and
``proj_attn``; most published autoencoders still are. Folder loading applies this to every file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

_OLD = re.compile(r"(?P<layer>(?:.*\.)?attentions\.\d+)\.(?P<name>query|key|value|proj_attn)\.")
_NEW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def rename_legacy_keys(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """The same values under today's names; keys that are not old stay.

    >>> rename_legacy_keys({"encoder.mid_block.attentions.0.proj_attn.bias": 1})
    {'encoder.mid_block.attentions.0.to_out.0.bias': 1}
    """
    return {
        _OLD.sub(lambda m: f"{m['layer']}.{_NEW[m['name']]}.", key): value
        for key, value in state_dict.items()
    }
