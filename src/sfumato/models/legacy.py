"""Weight names of old folders, and of some new ones, as the names that nearly all have.

Until diffusers 0.18 an autoencoder's attention was called ``query``, ``key``, ``value`` and
``proj_attn``; most published autoencoders still are. A text encoder or safety checker that was
made with transformers 5 lacks a level of names, ``text_model`` or the second ``vision_model``.
Folder loading applies this to every file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

_OLD = re.compile(r"(?P<layer>(?:.*\.)?attentions\.\d+)\.(?P<name>query|key|value|proj_attn)\.")
_NEW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def rename_legacy_keys(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """The same values under the usual names; keys that have them stay.

    >>> rename_legacy_keys({"encoder.mid_block.attentions.0.proj_attn.bias": 1})
    {'encoder.mid_block.attentions.0.to_out.0.bias': 1}
    >>> rename_legacy_keys({"embeddings.token_embedding.weight": 1, "final_layer_norm.bias": 2})
    {'text_model.embeddings.token_embedding.weight': 1, 'text_model.final_layer_norm.bias': 2}
    """
    if "embeddings.token_embedding.weight" in state_dict:
        state_dict = {f"text_model.{key}": value for key, value in state_dict.items()}
    elif {"concept_embeds", "vision_model.embeddings.class_embedding"} <= state_dict.keys():
        state_dict = {
            f"vision_model.{key}" if key.startswith("vision_model.") else key: value
            for key, value in state_dict.items()
        }
    return {
        _OLD.sub(lambda m: f"{m['layer']}.{_NEW[m['name']]}.", key): value
        for key, value in state_dict.items()
    }
