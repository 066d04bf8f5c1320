"""The ways to quantise, by name, and what one name means for a whole pipeline; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.errors import InputError, did_you_mean

#: Each way, and how a pipeline's networks are quantised when it is asked for.
#:
#: Full 8 bits cost the autoencoder less than the UNet, and save time and memory. The text encoder
#: runs once, so of it only the weights are made smaller, which is all but exact.
KINDS: Mapping[str, Mapping[str, str]] = {
    "int8": {"unet": "int8", "vae": "int8", "text_encoder": "int8-weights"},
    "int8-weights": {"unet": "int8-weights", "text_encoder": "int8-weights"},
    "int4": {"unet": "int4", "text_encoder": "int8-weights"},
}

#: Blocks of a GGUF file stay as they are in it.
STORED = "stored"

#: Types of blocks that some kinds keep weights in, in the spelling of GGUF files.
BLOCKS = {"int8-weights": "Q8_0", "int4": "Q4_1"}


def check_kind(kind: Any, *, of_files: bool = False) -> str:
    """The name of a way to quantise; with ``of_files``, or `STORED`.

    Raises:
        InputError: there is none of this name.
    """
    known = (*KINDS, STORED) if of_files else tuple(KINDS)
    if not isinstance(kind, str) or kind not in known:
        raise InputError(
            f"There is no quantization {str(kind)[:80]!r}; it is one of {', '.join(known)}."
            f"{did_you_mean(str(kind)[:80], known)}"
        )
    return kind


def kind_for(quantization: Any, component: str) -> str | None:
    """How to quantise a pipeline's component, from one name for all or a table by component."""
    if isinstance(quantization, Mapping):
        return quantization.get(component)
    if quantization is None or quantization == STORED:
        return quantization
    return KINDS[check_kind(quantization)].get(component)
