"""What a file of adapters was made for, guessed for error messages from its names and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from sfumato.checkpoints.recognise import what_weights_look_like
from sfumato.errors import printable

#: Width of the text tokens that cross-attention reads -> the model that has it.
_WIDTHS = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    1280: "the SDXL refiner",
    2048: "SDXL",
}
_MARKS = (
    (r"lora_te2|text_encoder_2|transformer_blocks[._][1-9]", "a LoRA for SDXL"),
    (r"(?:double|single)_(?:transformer_)?blocks", "a LoRA for Flux"),
    (r"joint_blocks|lora_transformer_|^transformer\.", "a LoRA for a diffusion transformer"),
    (r"controlnet|^lora_control", "a LoRA for a ControlNet"),
    (r"string_to_param|emb_params", "a textual inversion, see `load_textual_inversion`"),
    (r"lambda_layer|q_layer", "a T-LoRA, which cannot be applied without its training's start"),
)
_CROSS = re.compile(
    r"attn2[._](?:processor[._])?to_[kv].*"
    r"(?:lora_down|lora_A(?:\.\w+)?|lora\.down)\.weight$|attn2[._].*to_[kv]\.hada_w1_b$"
)


def what_adapter_looks_like(tensors: Mapping[str, Tensor]) -> str | None:
    """A phrase such as ``a LoRA for SDXL``, or None when nothing is recognised."""
    for pattern, meaning in _MARKS:
        if any(re.search(pattern, name) for name in tensors):
            return meaning
    widths = {t.shape[1] for name, t in tensors.items() if t.ndim > 1 and _CROSS.search(name)}
    for width in widths & _WIDTHS.keys():
        return f"a LoRA for {_WIDTHS[width]}"
    guess = what_weights_look_like({name: tuple(t.shape) for name, t in tensors.items()})
    return None if guess is None or guess.startswith("a LoRA") else guess


def listed(reasons: Mapping[str, str], limit: int) -> str:
    """Names and why, one per line, at most ``limit`` lines."""
    lines = [
        f"\n  {printable(name, 200)}: {reason}" for name, reason in _first(reasons.items(), limit)
    ]
    more = len(reasons) - len(lines)
    return "".join(lines) + (f"\n  and {more} more" if more else "")


def _first(items: Iterable[tuple[str, str]], limit: int) -> list[tuple[str, str]]:
    return [item for _, item in zip(range(limit), items, strict=False)]
