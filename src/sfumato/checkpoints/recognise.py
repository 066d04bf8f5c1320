"""What a weight file is, from the names and shapes of its tensors alone.

`sfumato info` shows it, loaders use it in messages, and `original.families` tells with it what can
be loaded from what cannot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sfumato.checkpoints.original.conditions import CONDITION_MARKERS

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

SD1, SD2 = "Stable Diffusion 1.x", "Stable Diffusion 2.x"
SDXL, SDXL_REFINER = "SDXL", "SDXL refiner"
LATENT_DIFFUSION = "Latent diffusion"

#: Width of the text's vectors, which tells the base models apart.
BASES = {768: SD1, 1024: SD2, 1280: SDXL_REFINER, 2048: SDXL}
_INPUT_CHANNELS = {
    5: "a depth-to-image network (5 input channels)",
    7: "the x4 upscaler (7 input channels)",
    8: "an image-editing network (8 input channels)",
    9: "an inpainting network (9 input channels)",
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a file is.

    Attributes:
        name: one word or two, such as ``lora``.
        base: the model that it is, or belongs to, if that can be told.
        phrase: for the middle of a sentence, such as ``an SDXL checkpoint``.
    """

    name: str
    base: str | None
    phrase: str


def recognise(shapes: Shapes) -> Kind | None:
    """What the tensors of these names and shapes are, or ``None`` when nothing is recognised."""
    names = "\n".join(shapes)
    for parts, name, phrase in _BY_NAME:
        if any(part in names for part in parts):
            base = _BASE_FINDERS.get(name, _base_of_context)(shapes)
            return Kind(name=name, base=base, phrase=phrase)
    if _is_embedding(shapes):
        base = _base_of_embedding(shapes)
        return Kind(
            name="embedding",
            base=base,
            phrase="an embedding, which is loaded with `load_textual_inversion`",
        )
    return _by_structure(shapes, names)


def what_weights_look_like(shapes: Shapes) -> str | None:
    """A phrase such as ``an SDXL checkpoint``, or ``None`` when nothing is recognised."""
    kind = recognise(shapes)
    return kind.phrase if kind else None


#: Parts of names of which one is enough, in this order: what is found first counts.
_BY_NAME: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("lora_A.", "lora_down.", "lora.down.", "lora_up.", "lora.up.", "_lora.", "hada_w1",
         "lokr_w", "oft_blocks", "oft_diag", "dora_scale", ".diff_b", "lora_unet_", "lora_te"),
        "lora", "a LoRA, which is loaded with `load_lora_weights`",
    ),
    (("controlnet_cond_embedding.", "control_model.", "input_hint_block.", "lllite_",
      "controlnet_down_blocks."), "controlnet", "a ControlNet"),
    (("adapter.body.", "body.0.in_conv"), "t2i-adapter", "a T2I-Adapter"),
    (("image_proj.", "ip_adapter."), "ip-adapter", "an IP-Adapter"),
    (("motion_modules.", "temporal_transformer."), "motion module",
     "a motion module of AnimateDiff"),
    (("conditioner.embedders.1.", "conditioner.embedders.0.model.text_projection"),
     "checkpoint", "an SDXL checkpoint in one file"),
    (("joint_blocks.", "double_blocks.", "double_stream_blocks.", "cap_embedder."),
     "checkpoint", "a diffusion transformer (SD3, Flux or alike)"),
    (("model.diffusion_model.",), "checkpoint",
     "a checkpoint in one file, which is loaded with `from_single_file`"),
    (("cond_stage_model.",), "text encoder",
     "a text encoder cut from a checkpoint in one file"),
    (("concept_embeds",), "safety checker", "a safety checker"),
    (("RRDB_trunk.", "model.1.sub.", "body.0.rdb1."), "upscaler", "an ESRGAN upscaler"),
)  # fmt: skip


def _by_structure(shapes: Shapes, names: str) -> Kind | None:
    if "transformer_blocks." in names and ("context_embedder." in names or "x_embedder." in names):
        phrase = "a diffusion transformer (SD3, Flux or alike)"
        return Kind(name="unet", base=None, phrase=phrase)
    if "input_blocks." in names and "time_embed.0.weight" in names:
        phrase = "a UNet in the original layout"
        return Kind(name="unet", base=_base_of_context(shapes), phrase=phrase)
    if "down_blocks." in names and "conv_in.weight" in shapes:
        return Kind(name="unet", base=_base_of_context(shapes), phrase=_which_unet(shapes))
    if _is_tiny_decoder(shapes):
        return Kind(name="tiny autoencoder", base=None, phrase="a tiny autoencoder (TAESD)")
    if "quantize.embedding.weight" in names and "decoder." in names:
        phrase = "a first stage with a codebook (VQ)"
        return Kind(name="vae", base=None, phrase=phrase)
    if any(p in names for p in ("decoder.up_blocks.", "decoder.conv_in.", "decoder.up.")):
        return Kind(name="vae", base=None, phrase="an autoencoder")
    if "vision_model." in names:
        return Kind(name="image encoder", base=None, phrase="a CLIP model with a vision part")
    if "text_model." in names or "token_embedding.weight" in names:
        width = shapes.get("text_model.final_layer_norm.weight", (0,))[0]
        phrase = f"a CLIP text encoder of width {width}" if width else "a CLIP text encoder"
        return Kind(name="text encoder", base=BASES.get(width), phrase=phrase)
    return None


def _which_unet(shapes: Shapes) -> str:
    channels = shapes["conv_in.weight"]
    if not any("add_embedding." in name for name in shapes) and len(channels) == 4:
        special = _INPUT_CHANNELS.get(channels[1])
        if special:
            return special
    base = _base_of_context(shapes)
    article = "an" if base in (SDXL, SDXL_REFINER) else "a"
    return f"{article} {base} checkpoint" if base else "a UNet"


# Which base model


def _base_of_context(shapes: Shapes) -> str | None:
    """By the width of the text that the cross-attention looks at, or what makes the text."""
    if any(f"cond_stage_model.{name}" in shapes for name in CONDITION_MARKERS.values()):
        return LATENT_DIFFUSION
    if any("add_embedding." in name or "conditioner.embedders.1." in name for name in shapes):
        return SDXL
    widths = [s[-1] for n, s in shapes.items() if n.endswith("attn2.to_k.weight") and s]
    return BASES.get(widths[0]) if widths else None


_LORA_CONTEXT = re.compile(
    r".*attn2[._]to_k[._](?:processor\.)?.*(?:lora_down|lora_A|lora\.down|down|hada_w1_b|lora_A\.\w+)"
    r"(?:\.weight)?"
)
_LORA_TEXT = re.compile(r".*(?:q_proj)[._](?:lora_down|lora_A|lora_linear_layer\.down).*weight")


def _base_of_lora(shapes: Shapes) -> str | None:
    """By what its cross-attention, or its text encoder, takes in."""
    names = list(shapes)
    if any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in names):
        return SDXL
    for pattern in (_LORA_CONTEXT, _LORA_TEXT):
        for name in names:
            shape = shapes[name]
            if len(shape) >= 2 and pattern.fullmatch(name[:400]) and shape[1] in BASES:
                return BASES[shape[1]]
    return None


def _base_of_embedding(shapes: Shapes) -> str | None:
    if {"clip_l", "clip_g"} <= set(shapes):
        return SDXL
    return BASES.get(next(iter(shapes.values()))[-1])


def _base_of_ip_adapter(shapes: Shapes) -> str | None:
    """By the width of the tokens that a picture becomes."""
    widths = [shape[-1] for name, shape in shapes.items() if ".to_k_ip." in name and shape]
    return BASES.get(widths[0]) if widths else None


def _none(shapes: Shapes) -> str | None:
    return None


_BASE_FINDERS: dict[str, Callable[[Shapes], str | None]] = {
    "lora": _base_of_lora,
    "t2i-adapter": _none,
    "ip-adapter": _base_of_ip_adapter,
    "upscaler": _none,
    "safety checker": _none,
}


def _is_embedding(shapes: Shapes) -> bool:
    """A few vectors of a text encoder's width, and nothing else."""
    widths = {*BASES, 1280}
    return 0 < len(shapes) <= 2 and all(
        1 <= len(shape) <= 2 and shape[-1] in widths and (len(shape) == 1 or shape[0] <= 1024)
        for shape in shapes.values()
    )


def _is_tiny_decoder(names: Iterable[str]) -> bool:
    found = set(names)
    return {"1.weight", "3.conv.0.weight"} <= found or {"0.weight", "1.conv.0.weight"} <= found
