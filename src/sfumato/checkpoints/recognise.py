"""Guessing from names and shapes what a weight file is, for error messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]

_CONTEXT_WIDTHS = {
    768: "a Stable Diffusion 1.x checkpoint",
    1024: "a Stable Diffusion 2.x checkpoint",
    1280: "an SDXL refiner checkpoint",
    2048: "an SDXL checkpoint",
}
_INPUT_CHANNELS = {
    5: "a depth-to-image network (5 input channels)",
    7: "the x4 upscaler (7 input channels)",
    8: "an image-editing network (8 input channels)",
    9: "an inpainting network (9 input channels)",
}


def what_weights_look_like(shapes: Shapes) -> str | None:
    """A phrase such as ``an SDXL checkpoint``, or ``None`` when nothing is recognised."""
    names = list(shapes)
    if _any(names, "lora_A.", "lora_down.", "lora.down.", "lora_up.", "hada_w1", "lokr_w"):
        return "a LoRA, which is loaded with `load_lora_weights`"
    if _any(names, "conditioner.embedders."):
        return "an SDXL checkpoint in one file"
    if _any(names, "model.diffusion_model.", "cond_stage_model.", "first_stage_model."):
        return "a checkpoint in one file, which is loaded with `from_single_file`"
    if _any(names, "control_model.", "controlnet_down_blocks."):
        return "a ControlNet"
    if _any(names, "transformer_blocks.") and _any(names, "context_embedder.", "x_embedder."):
        return "a diffusion transformer (SD3, Flux or alike)"
    if _any(names, "down_blocks.") and "conv_in.weight" in shapes:
        return _which_unet(shapes)
    if _any(names, "decoder.up_blocks.", "decoder.conv_in."):
        return "an autoencoder"
    if _any(names, "vision_model."):
        return "a CLIP model with a vision part"
    if _any(names, "text_model."):
        width = shapes.get("text_model.final_layer_norm.weight", (0,))[0]
        return f"a CLIP text encoder of width {width}"
    return None


def _which_unet(shapes: Shapes) -> str | None:
    if _any(shapes, "add_embedding."):
        return "an SDXL checkpoint"
    channels = shapes["conv_in.weight"]
    if len(channels) == 4 and channels[1] in _INPUT_CHANNELS:
        return _INPUT_CHANNELS[channels[1]]
    widths = [s[-1] for n, s in shapes.items() if n.endswith("attn2.to_k.weight") and s]
    return _CONTEXT_WIDTHS.get(widths[0]) if widths else None


def _any(names: Iterable[str], *parts: str) -> bool:
    return any(part in name for name in names for part in parts)
