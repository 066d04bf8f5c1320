"""Masks that say where in the picture an IP-Adapter acts."""

from __future__ import annotations

from torch import Tensor

from sfumato.models.ip_attention import downsample_mask
from sfumato.pipelines.image_processor import VaeImageProcessor


class IPAdapterMaskProcessor(VaeImageProcessor):
    """Makes masks for ``cross_attention_kwargs={"ip_adapter_masks": [...]}`` of black-and-white
    pictures: white is where the adapter acts.

    `preprocess` gives ``(masks, 1, height, width)``; the call wants, per adapter,
    ``(1, pictures, height, width)``, so reshape what belongs to one adapter.

    Args:
        do_resize: scale pictures to a multiple of ``vae_scale_factor``, or to the size asked.
        vae_scale_factor: pixels per latent, along one side.
        resample: filter for PIL pictures.
        do_normalize: map 0..1 to -1..1.
        do_binarize: round to 0 and 1.
        do_convert_grayscale: convert PIL pictures to one channel.
    """

    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        resample: str = "lanczos",
        do_normalize: bool = False,
        do_binarize: bool = True,
        do_convert_grayscale: bool = True,
    ) -> None:
        super().__init__(
            do_resize=do_resize,
            vae_scale_factor=vae_scale_factor,
            resample=resample,
            do_normalize=do_normalize,
            do_binarize=do_binarize,
            do_convert_grayscale=do_convert_grayscale,
        )

    @staticmethod
    def downsample(mask: Tensor, batch_size: int, num_queries: int, value_embed_dim: int) -> Tensor:
        """A mask as factors on a layer's tokens; see `downsample_mask`."""
        return downsample_mask(mask, batch_size, num_queries, value_embed_dim)
