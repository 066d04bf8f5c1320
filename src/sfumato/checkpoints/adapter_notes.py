"""What a file of adapters (LoRA and its kin) holds, from names and shapes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sfumato.adapters.keys import split_key

Shape = tuple[int, ...]

#: The family that a tensor of this name belongs to; the first match in this order counts.
_FAMILIES = (
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("oft_", "OFT"),
    ("boft_", "BOFT"),
    ("ia3_", "IA3"),
    ("on_input", "IA3"),
    ("diff", "full"),
    ("w_norm", "norm"),
    ("lora_mid", "LoCon (CP)"),
    ("lora_", "LoRA"),
)
_GLORA = frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight"})

#: Tensors whose first size is the rank.
_RANKED = frozenset({"lora_A.weight", "hada_w1_b", "hada_w2_b", "lokr_w1_b", "lokr_w2_b"})
_NETWORKS = {"unet": "UNet", "text_encoder": "text encoder", "text_encoder_2": "text encoder 2"}


def describe_adapter(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Families, ranks and targets as text, such as ``{"rank": "8", "layers": "UNet 192"}``."""
    families: set[str] = set()
    ranks: Counter[int] = Counter()
    layers: dict[str, set[str]] = {}
    for name, shape in shapes.items():
        key = split_key(name)
        if key is None:
            continue
        families |= {f for start, f in _FAMILIES if key.leaf.startswith(start)}
        families |= {"GLoRA"} if key.leaf in _GLORA else set()
        layers.setdefault(_NETWORKS.get(key.network or "", "other"), set()).add(key.layer)
        if key.leaf in _RANKED and shape:
            ranks[shape[0]] += 1
            families |= {"LoCon"} if len(shape) == 4 and shape[2:] != (1, 1) else set()
    found = {
        "families": ", ".join(sorted(families)),
        "rank": ", ".join(str(rank) for rank, _ in ranks.most_common(8)),
        "layers": ", ".join(f"{name} {len(names)}" for name, names in sorted(layers.items())),
    }
    return {label: text for label, text in found.items() if text}
