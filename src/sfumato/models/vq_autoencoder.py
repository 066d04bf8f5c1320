"""The first stage with a codebook: images to latents, and the nearest vectors of a book to images.

As in VQGAN (Esser et al., arXiv:2012.09841) but with the quantiser inside the decoder, so that
diffusion models draw in the latents before it (arXiv:2112.10752, section 3.1). Configuration
fields and weight names are diffusers'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models.autoencoder import DecoderOutput
from sfumato.models.autoencoder_config import VQModelConfig as VQModelConfig
from sfumato.models.first_stage import FirstStage
from sfumato.models.vae_blocks import Decoder, Encoder
from sfumato.outputs import BaseOutput

#: So many distances are held at once: 64 MiB in float32.
MOST_DISTANCES = 2**24


class Quantized(NamedTuple):
    """What a `VectorQuantizer` returns.

    Attributes:
        latents: ``(N, C, h, w)``, each vector the nearest of the codebook. Gradients pass to what
            came in, as if nothing had happened to it.
        loss: draws the vectors that came in and those of the codebook together.
        indices: numbers of the vectors, ``(N, h, w)``.
    """

    latents: Tensor
    loss: Tensor
    indices: Tensor


class VectorQuantizer(nn.Module):
    """Replaces vectors by the nearest of a codebook (van den Oord et al., arXiv:1711.00937).

    Args:
        n_e: vectors in the codebook.
        vq_embed_dim: channels of each.
        beta: weight of one half of the loss against the other.
        legacy: weigh the half that moves the codebook, as all published models were trained;
            otherwise the half that moves the encoder, as in the paper.
    """

    def __init__(
        self, n_e: int, vq_embed_dim: int, beta: float = 0.25, *, legacy: bool = True
    ) -> None:
        super().__init__()
        self.n_e, self.vq_embed_dim, self.beta, self.legacy = n_e, vq_embed_dim, beta, legacy
        self.embedding = nn.Embedding(n_e, vq_embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)

    def forward(self, z: Tensor) -> Quantized:
        """Quantise latents ``(N, C, h, w)``."""
        if z.ndim != 4 or z.shape[1] != self.vq_embed_dim:
            raise InputError(
                f"Latents have to be of the shape (N, {self.vq_embed_dim}, h, w) but are of "
                f"{tuple(z.shape)}."
            )
        rows = z.movedim(1, -1)
        indices = self.nearest(rows.reshape(-1, self.vq_embed_dim)).view(rows.shape[:-1])
        chosen = self.embedding(indices).movedim(-1, 1)
        to_book = torch.mean((chosen.detach() - z) ** 2)
        to_latents = torch.mean((chosen - z.detach()) ** 2)
        weighed, other = (to_latents, to_book) if self.legacy else (to_book, to_latents)
        return Quantized(z + (chosen - z).detach(), self.beta * weighed + other, indices)

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """The number of the nearest vector of the codebook for each row ``(M, C)``."""
        book = self.embedding.weight.float()
        some = max(MOST_DISTANCES // self.n_e, 1)
        found = [torch.cdist(part, book).argmin(1) for part in rows.float().split(some)]
        return torch.cat(found)

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Vectors by number.

        Args:
            indices: any shape.
            shape: ``(N, h, w, C)`` of the result before its channels go second; None leaves the
                channels last.
        """
        found = self.embedding(indices)
        return found if shape is None else found.view(*shape).movedim(-1, 1).contiguous()


@dataclass
class VQEncoderOutput(BaseOutput):
    """What `VQModel.encode` returns: latents ``(N, C, h, w)``, not quantised."""

    latents: Tensor


class VQModel(FirstStage[VQModelConfig]):
    """An autoencoder whose decoder sees vectors of a codebook.

    For slicing and tiling see `FirstStage`.
    """

    config_class = VQModelConfig

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        c = self.config
        latent, width = c.latent_channels, c.codebook_width
        self.encoder = Encoder(c, latent)
        self.quant_conv = nn.Conv2d(latent, width, 1)
        self.quantize = VectorQuantizer(c.num_vq_embeddings, width)
        self.post_quant_conv = nn.Conv2d(width, latent, 1)
        self.decoder = Decoder(c)
        self._begin_whole(c.sample_size, len(c.block_out_channels))

    @overload
    def encode(self, x: Tensor, return_dict: Literal[True] = True) -> VQEncoderOutput: ...

    @overload
    def encode(self, x: Tensor, return_dict: bool) -> VQEncoderOutput | tuple[Tensor]: ...

    def encode(self, x: Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[Tensor]:
        """The latents of images ``(N, in_channels, H, W)`` in -1..1, before the codebook."""
        latents = self._encoded(x)
        return VQEncoderOutput(latents) if return_dict else (latents,)

    @overload
    def decode(
        self,
        h: Tensor,
        force_not_quantize: bool = False,
        return_dict: Literal[True] = True,
        shape: Sequence[int] | None = None,
    ) -> DecoderOutput: ...

    @overload
    def decode(
        self,
        h: Tensor,
        force_not_quantize: bool = False,
        return_dict: bool = True,
        shape: Sequence[int] | None = None,
    ) -> DecoderOutput | tuple[Tensor, Tensor]: ...

    def decode(
        self,
        h: Tensor,
        force_not_quantize: bool = False,
        return_dict: bool = True,
        shape: Sequence[int] | None = None,
    ) -> DecoderOutput | tuple[Tensor, Tensor]:
        """The images of latents.

        Args:
            h: latents ``(N, C, h, w)``; or numbers of vectors, of a model with
                ``lookup_from_codebook`` and with ``force_not_quantize``.
            force_not_quantize: take what is given as it is, rather than the nearest vectors.
            return_dict: return an output object rather than a tuple of images and loss.
            shape: for numbers, ``(N, h, w, C)``.
        """
        if not force_not_quantize:
            quantized = self.quantize(h)
            latents, loss = quantized.latents, quantized.loss
        else:
            book = self.config.lookup_from_codebook
            latents = self.quantize.get_codebook_entry(h, shape) if book else h
            loss = torch.zeros(len(h), device=h.device, dtype=h.dtype)
        image = self._decoded(latents)
        return DecoderOutput(image, loss) if return_dict else (image, loss)

    def forward(
        self, sample: Tensor, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor, Tensor]:
        """Encode and decode images ``(N, in_channels, H, W)``."""
        return self.decode(self.encode(sample).latents, return_dict=return_dict)
