"""Putting IP-Adapters on a UNet and taking them off again, without a trace.

`attach` gives each cross-attention layer a processor with the adapters' keys and values, and the
UNet their image projections; names of weights are diffusers'. What was there before is kept beside
the network, where `detach` finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sfumato.adapters import network
from sfumato.errors import AdapterError, InputError
from sfumato.models.attention import Attention
from sfumato.models.image_projections import MultiIPAdapterImageProjection
from sfumato.models.ip_attention import IPAdapterAttnProcessor2_0, Scale
from sfumato.models.processors import AttentionProcessor, AttnProcessor2_0
from sfumato.models.unet_config import IP_IMAGE_PROJ, UNet2DConditionConfig

if TYPE_CHECKING:
    from sfumato.models.unet import UNet2DConditionModel

#: Where a UNet keeps what it was like without adapters.
ATTRIBUTE = "_without_ip_adapters"
_PROJECTIONS = "encoder_hid_proj.image_projection_layers."


@dataclass(frozen=True, eq=False)
class _Before:
    """What `attach` found, and the names of the LoRAs that came with the adapters."""

    config: UNet2DConditionConfig
    text_projection: nn.Module | None
    processors: Mapping[str, AttentionProcessor]
    loras: tuple[str, ...]


def cross_attention_layers(unet: nn.Module) -> dict[str, Attention]:
    """The layers on which IP-Adapters act, in the order in which files number them.

    Layer ``k`` of these has the number ``2 k + 1``; the self-attention before it, ``2 k``.
    """
    return {
        path: layer
        for path, layer in unet.named_modules()
        if isinstance(layer, Attention) and path.endswith(".attn2")
    }


def require_suitable(unet: Any) -> None:
    """Raise unless IP-Adapters can act on a UNet.

    Raises:
        InputError: it is no UNet of this package.
        AdapterError: it is of a kind that IP-Adapters are not made for.
    """
    from sfumato.models.unet import UNet2DConditionModel

    if not isinstance(unet, UNet2DConditionModel):
        raise InputError(
            f"IP-Adapters need a UNet2DConditionModel of sfumato, but `unet` is a"
            f" {type(unet).__name__}."
        )
    config = unet.own_config
    reads_images = config.encoder_hid_dim_type in ("text_image_proj", "image_proj")
    if reads_images or config.addition_embed_type in ("image", "text_image"):
        raise AdapterError("This UNet reads pictures by itself, so it takes no IP-Adapter.")
    layers = [layer for layer in unet.modules() if isinstance(layer, Attention)]
    odd = any(layer.added_kv_proj_dim is not None for layer in layers)
    if odd or not cross_attention_layers(unet):
        raise AdapterError(
            "This UNet has no transformers that look at the text, or other attention beside them,"
            " so it takes no IP-Adapter."
        )


def attach(
    unet: UNet2DConditionModel,
    projections: Sequence[nn.Module],
    processors: Mapping[str, IPAdapterAttnProcessor2_0],
    loras: Sequence[str] = (),
) -> None:
    """Give a UNet adapters, in place of any that it has.

    Args:
        unet: see `require_suitable`.
        projections: one per adapter.
        processors: path of each cross-attention layer -> its processor, with all adapters in it.
        loras: names of LoRAs that are taken off with the adapters.
    """
    place = {"device": unet.device, "dtype": unet.dtype}
    projection = MultiIPAdapterImageProjection(projections).to(**place).train(unet.training)
    for processor in processors.values():
        processor.to(**place).train(unet.training)
    detach(unet)
    layers = cross_attention_layers(unet)
    before = _Before(
        unet.config,
        unet.encoder_hid_proj,
        {path: layer.get_processor() for path, layer in layers.items()},
        tuple(loras),
    )
    unet.__dict__[ATTRIBUTE] = before
    for path, layer in layers.items():
        old = before.processors[path]
        if isinstance(old, AttnProcessor2_0):
            processors[path].kernel = old
        layer.set_processor(processors[path])
    if before.text_projection is not None:
        unet.text_encoder_hid_proj = before.text_projection
    unet.encoder_hid_proj = projection
    unet.config = before.config.replace(encoder_hid_dim_type=IP_IMAGE_PROJ)


def detach(unet: UNet2DConditionModel) -> bool:
    """Take all adapters off a UNet, which then is what it was.

    Attention that was sliced meanwhile stays so, and processors that others set stay theirs.

    Returns:
        Whether there were any.
    """
    before: _Before | None = unet.__dict__.pop(ATTRIBUTE, None)
    if before is None:
        return False
    for path, layer in cross_attention_layers(unet).items():
        processor = layer.get_processor()
        if isinstance(processor, IPAdapterAttnProcessor2_0):
            old = before.processors[path]
            layer.set_processor(processor.kernel if isinstance(old, AttnProcessor2_0) else old)
    # Deleted first, so that the absent layer is a plain attribute again as in a new network.
    del unet.encoder_hid_proj, unet.text_encoder_hid_proj
    unet.encoder_hid_proj, unet.text_encoder_hid_proj = before.text_projection, None
    unet.config = before.config
    network.remove(unet, before.loras)
    return True


@contextmanager
def all_or_nothing(unet: UNet2DConditionModel) -> Iterator[None]:
    """When the block raises, the UNet has the adapters and LoRAs again that it had before it."""
    layers = cross_attention_layers(unet)
    processors = {path: layer.get_processor() for path, layer in layers.items()}
    names = ("encoder_hid_proj", "text_encoder_hid_proj", "config")
    kept = {name: getattr(unet, name) for name in names}
    before = unet.__dict__.get(ATTRIBUTE)
    with network.all_or_nothing([unet]):
        try:
            yield
        except BaseException:
            for path, layer in layers.items():
                layer.set_processor(processors[path])
            del unet.encoder_hid_proj, unet.text_encoder_hid_proj
            for name, value in kept.items():
                setattr(unet, name, value)
            unet.__dict__.pop(ATTRIBUTE, None)
            if before is not None:
                unet.__dict__[ATTRIBUTE] = before
            raise


def has_adapters(unet: Any) -> bool:
    """Whether any adapter is attached, also to a UNet of diffusers."""
    return bool(projections_of(unet))


def projections_of(unet: Any) -> list[Any]:
    """The image projections of a UNet's adapters, also of a UNet of diffusers."""
    projection = getattr(unet, "encoder_hid_proj", None)
    return list(getattr(projection, "image_projection_layers", None) or ())


def set_scales(unet: UNet2DConditionModel, scale_of: Sequence[Callable[[str], Scale]]) -> None:
    """Set how much each adapter acts, as a function of a cross-attention layer's path."""
    for path, layer in cross_attention_layers(unet).items():
        processor = layer.get_processor()
        if isinstance(processor, IPAdapterAttnProcessor2_0):
            processor.scale = [scale(path) for scale in scale_of]


# A UNet's own, as it is saved


def own_config(unet: UNet2DConditionModel) -> UNet2DConditionConfig:
    """The configuration as it is without adapters."""
    before: _Before | None = unet.__dict__.get(ATTRIBUTE)
    config = unet.config if before is None else before.config
    if config.encoder_hid_dim_type == IP_IMAGE_PROJ:
        return config.replace(encoder_hid_dim_type=None)
    return config


def own_state(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The ``state_dict`` as it is without adapters."""
    state = unet.state_dict()
    if ATTRIBUTE not in unet.__dict__:
        return state
    return {
        name.replace("text_encoder_hid_proj.", "encoder_hid_proj."): tensor
        for name, tensor in state.items()
        if not name.startswith(_PROJECTIONS) and ".processor.to_" not in name
    }
