"""Which family a file in the original layout is of, told by the shapes of its tensors.

The order of the tests is that of diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping

from sfumato.checkpoints.original import latent
from sfumato.checkpoints.original.families import Family, family
from sfumato.checkpoints.original.parts import find_part
from sfumato.checkpoints.recognise import SDXL, SDXL_REFINER, recognise
from sfumato.errors import CheckpointError

Shape = tuple[int, ...]


def detect_family(shapes: Mapping[str, Shape], where: str, *, unet_only: bool = False) -> Family:
    """The family of a file with these tensors.

    Whether a checkpoint of Stable Diffusion 2 predicts noise or velocity is no matter of shapes;
    see `prediction`.

    Args:
        shapes: of all tensors, under the names in the file.
        where: names the file in messages.
        unet_only: the UNet alone is wanted, so other parts that this version lacks do not matter.

    Raises:
        CheckpointError: the file is of another family, or no checkpoint.
    """
    unet = find_part(shapes, "unet")
    if unet is None or unet.layout == "diffusers":
        raise _not_loadable(shapes, where)
    if (condition := find_part(shapes, "conditioner")) is not None:
        return latent.conditioned_family(shapes, condition)
    if not unet_only:
        _refuse_special(shapes, where)
    own = {short: shapes[name] for short, name in unet.names.items()}
    if latent.is_plain(own):
        return latent.plain_family(shapes, own, where, unet_only=unet_only)
    if "label_emb.0.0.weight" in own and not unet_only:
        raise _other_pipeline(where, "an unCLIP checkpoint, which begins from an image's embedding")
    channels = own["input_blocks.0.0.weight"][1:2]
    newer = _is_second_generation(shapes, own)
    if channels == (9,):
        name = "stable-diffusion-v2-inpainting" if newer else "stable-diffusion-v1-inpainting"
    elif "label_emb.weight" in own:
        name = "stable-diffusion-x4-upscaler"
    elif newer:
        name = "stable-diffusion-v2-depth" if channels == (5,) else "stable-diffusion-v2"
    else:
        name = "instruct-pix2pix" if channels == (8,) else "stable-diffusion-v1"
    return family(name)


def _is_second_generation(shapes: Mapping[str, Shape], unet: Mapping[str, Shape]) -> bool:
    """By the width of the text; where that is of no published model, by the text encoder."""
    width = next((s[-1] for n, s in unet.items() if n.endswith("attn2.to_k.weight") and s), None)
    if width in (768, 1024):
        return width == 1024
    text = find_part(shapes, "text_encoder")
    if text is not None:
        return text.layout == "open_clip"
    projection = next((s for n, s in unet.items() if n.endswith(".proj_in.weight")), ())
    return len(projection) == 2


def _refuse_special(shapes: Mapping[str, Shape], where: str) -> None:
    for name in shapes:
        if name.startswith(("control_model.", "input_hint_block.")):
            raise CheckpointError(
                f"{where} holds a ControlNet, which `from_single_file` of a pipeline does not "
                "load.",
                hint="Load the checkpoint that it belongs to.",
            )
        if name.startswith(("noise_augmentor.", "embedder.model.visual.")):
            raise _other_pipeline(
                where, "an unCLIP checkpoint, which begins from an image's embedding"
            )
    kind = recognise(shapes)
    if kind is not None and kind.base in (SDXL, SDXL_REFINER):
        raise CheckpointError(
            f"{where} is {kind.phrase} ({kind.base}), which sfumato does not draw with.",
            hint="Stable Diffusion 1.x and 2.x are supported.",
        )


def _other_pipeline(where: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{where} is {what}; it needs a pipeline of its own.",
        hint="`UNet2DConditionModel.from_single_file` and `AutoencoderKL.from_single_file` load "
        "its parts.",
    )


def _not_loadable(shapes: Mapping[str, Shape], where: str) -> CheckpointError:
    kind = recognise(shapes)
    hints = {
        "vae": "Load it with `from_single_file` of `AutoencoderKL` or `VQModel`.",
        "unet": "Load it with `from_single_file` of `UNet2DConditionModel` or `UNet2DModel`.",
        "tiny autoencoder": "Load it with `AutoencoderTiny`.",
    }
    if kind is None:
        return CheckpointError(f"{where} is no Stable Diffusion checkpoint that is recognised.")
    return CheckpointError(
        f"{where} is no Stable Diffusion checkpoint but {kind.phrase}.", hint=hints.get(kind.name)
    )
