"""From a file's key to (which network, which layer, which tensor), as far as text alone can tell.

    lora_unet_mid_block_attentions_0_proj_in.lora_down.weight
    -> Key("unet", "mid_block_attentions_0_proj_in", "lora_A.weight")

The layer's name is still in the file's spelling; `sfumato.adapters.names` knows which layer of a
network it means. Tensors get one name each (`LEAVES`), whatever the trainer called them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Endings of keys, and the name of the tensor they mean. PEFT may put the adapter's name into the
#: middle (``lora_A.default.weight``). ``{}`` in a name takes what the pattern's group found.
_ENDINGS: tuple[tuple[str, str], ...] = (
    (r"[._]lora\.down\.weight", "lora_A.weight"),
    (r"[._]lora\.up\.weight", "lora_B.weight"),
    (r"\.lora_linear_layer\.down\.weight", "lora_A.weight"),
    (r"\.lora_linear_layer\.up\.weight", "lora_B.weight"),
    (r"\.lora_down\.(weight|bias)", "lora_A.{}"),
    (r"\.lora_up\.(weight|bias)", "lora_B.{}"),
    (r"\.lora_mid\.weight", "lora_mid.weight"),
    (r"\.lora_(A|B)(?:\.[\w-]+)?\.weight", "lora_{}.weight"),
    (r"\.lora_(A|B)(?:\.[\w-]+)?\.bias", "lora_{}.bias"),
    (r"\.lora_magnitude_vector(?:\.[\w-]+)*", "lora_magnitude_vector"),
    (r"\.(hada_w[12]_[ab]|hada_t[12])(?:\.[\w-]+)?", "{}"),
    (r"\.(lokr_w[12](?:_[ab])?|lokr_t2)(?:\.[\w-]+)?", "{}"),
    (r"\.([ab][12]|bm)\.weight", "{}.weight"),
    (r"\.oft_R(?:\.[\w-]+)?\.weight", "oft_R.weight"),
    (r"\.(boft_R|boft_s|ia3_l)(?:\.[\w-]+)?", "{}"),
    (r"\.(oft_blocks|oft_diag|rescale|dora_scale|scalar|on_input)", "{}"),
    (r"\.(diff_b|diff|w_norm|b_norm)", "{}"),
    (r"(?:[._]lora|\.lora_linear_layer)?\.(alpha)", "{}"),
    (r"\.(weight)", "{}"),  # of IA3, which says so by an `on_input` beside it
)
_ENDING = re.compile(
    "(?:" + "|".join(f"(?P<e{i}>{pattern})" for i, (pattern, _) in enumerate(_ENDINGS)) + ")$"
)

#: All names of tensors that `split_key` can give.
LEAVES = frozenset(
    name.replace("{}", found)
    for name, founds in {
        "lora_{}.weight": ("A", "B", "mid"),
        "lora_{}.bias": ("A", "B"),
        "hada_{}": ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"),
        "lokr_{}": ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"),
        "{}.weight": ("a1", "a2", "b1", "b2", "bm", "oft_R"),
        "{}": (
            *("lora_magnitude_vector", "dora_scale", "scalar", "alpha", "diff", "diff_b"),
            *("w_norm", "b_norm", "weight", "on_input", "ia3_l"),
            *("oft_blocks", "oft_diag", "rescale", "boft_R", "boft_s"),
        ),
    }.items()
    for found in founds
)

UNET, TEXT_ENCODER = "unet", "text_encoder"

#: Beginnings of keys, longest first where one begins another, and the network they mean. None
#: leaves that to the rest of the key.
_BEGINNINGS: tuple[tuple[str, str | None], ...] = (
    (r"base_model\.model\.", None),
    (r"model\.diffusion_model\.", UNET),
    (r"diffusion_model\.", UNET),
    (r"(?:lora|lycoris|oft|boft|loha|lokr)_unet[_.]", UNET),
    (r"unet[._]", UNET),
    (r"(?:lora|lycoris|oft|boft|loha|lokr)_te1?[_.]", TEXT_ENCODER),
    (r"text_encoder\.", TEXT_ENCODER),
    (r"text_encoders\.clip_[lh]\.transformer\.", TEXT_ENCODER),
    (r"cond_stage_model\.(?:transformer|model)\.", TEXT_ENCODER),
    (r"(?:lora|lycoris|oft|boft|loha|lokr)_te([23])[_.]", "text_encoder_{}"),
    (r"text_encoder_([23])\.", "text_encoder_{}"),
    (r"lycoris_", None),
)
_BEGINNING = [(re.compile(pattern), network) for pattern, network in _BEGINNINGS]

#: A LyCORIS file may carry textual inversions: ``bundle_emb.<token>.string_to_param.*``.
BUNDLED = re.compile(r"bundle_emb\.(?P<token>.+?)\.(?P<part>string_to_param\.\*|emb_params|clip_l)")


@dataclass(frozen=True, slots=True)
class Key:
    """What a key says: ``network`` is None where it does not say, ``leaf`` is one of `LEAVES`."""

    network: str | None
    layer: str
    leaf: str


def split_key(key: str) -> Key | None:
    """Take a key apart; None when it ends like no tensor of an adapter."""
    found = _ENDING.search(key)
    if found is None:
        return None
    number = next(i for i in range(len(_ENDINGS)) if found[f"e{i}"] is not None)
    name = _ENDINGS[number][1]
    inner = re.fullmatch(_ENDINGS[number][0], found[0])
    if inner is not None and inner.groups():
        name = name.replace("{}", inner[1])
    network, layer = split_layer(key[: found.start()])
    return Key(network, layer, name)


def split_layer(name: str) -> tuple[str | None, str]:
    """The network that a layer's name begins with, if any, and the rest of the name."""
    network: str | None = None
    matched = True
    while matched and network is None:
        matched = False
        for pattern, meant in _BEGINNING:
            if start := pattern.match(name):
                network = meant.replace("{}", start[1]) if meant and start.groups() else meant
                name = name[start.end() :]
                matched = True
                break
    return network, name.removeprefix("base_model.model.")
