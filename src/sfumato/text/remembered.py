"""What a text encoder said of the last few prompts, for those who draw one prompt many times.

An answer is remembered as long as the encoder lives and its weights stay as they are. Encoders with
adapters, whose strengths may change, and those of other libraries or with hooks are always asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sfumato.text.clip import CLIPTextModel

#: Batches of prompts to remember for each encoder; one of SD 1.5 takes 120 KB in bfloat16.
CAPACITY = 32

_Answers = OrderedDict[tuple[Any, ...], Tensor]
_answers: WeakKeyDictionary[nn.Module, _Answers] = WeakKeyDictionary()
_lock = Lock()


def remembered(encoder: Any, question: tuple[Any, ...], ask: Callable[[], Tensor]) -> Tensor:
    """The answer to a question, remembered or asked for.

    Args:
        encoder: the text encoder.
        question: all that the answer depends on, besides the encoder's weights; hashable.
        ask: asks the encoder.
    """
    state = _state(encoder)
    if state is None:
        return ask()
    key = (*question, state)
    with _lock:
        answers = _answers.setdefault(encoder, OrderedDict())
        known = answers.get(key)
        if known is not None:
            answers.move_to_end(key)
            return known.clone()  # the caller may write into it
    answer = ask()
    with _lock:
        answers[key] = answer.clone()
        while len(answers) > CAPACITY:
            answers.popitem(last=False)
    return answer


def _state(encoder: Any) -> int | None:
    """What changes when the weights do; None for an encoder that has to be asked."""
    if type(encoder) is not CLIPTextModel or encoder.training or torch.is_grad_enabled():
        return None
    if torch.is_inference_mode_enabled():
        return None
    for module in encoder.modules():
        adapted = isinstance(module, nn.Linear | nn.LayerNorm) and type(module) not in _PLAIN
        if adapted or module._forward_hooks or module._forward_pre_hooks:
            return None
    weights = [*encoder.parameters(), *encoder.buffers()]
    if any(weight.is_inference() for weight in weights):
        return None
    return hash(tuple((id(w), w.data_ptr(), w._version, w.dtype) for w in weights))


_PLAIN = (nn.Linear, nn.LayerNorm)
