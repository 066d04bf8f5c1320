"""FreeU: stronger backbone features and weaker low frequencies in the skips.

Si et al., "FreeU: Free Lunch in Diffusion U-Net" (arXiv:2309.11497).
"""

from __future__ import annotations

import torch
from torch import Tensor


def apply_freeu(hidden: Tensor, skip: Tensor, b: float, s: float) -> tuple[Tensor, Tensor]:
    """Reweigh features and skip before they meet, both ``(N, C, H, W)``.

    Args:
        b: factor on the first half of the channels of ``hidden``.
        s: factor on the low frequencies of ``skip``.
    """
    first, second = hidden.tensor_split([hidden.shape[1] // 2], dim=1)
    return torch.cat([first * b, second], dim=1), scale_low_frequencies(skip, s)


def scale_low_frequencies(x: Tensor, factor: float) -> Tensor:
    """Multiply the four frequencies around zero (-1 and 0 along each axis) by ``factor``.

    Computed in float32: half precision has no transform for sizes that are no powers of two.
    """
    height, width = x.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fftn(x.float(), dim=(-2, -1)), dim=(-2, -1))
    gain = torch.ones((height, width), device=x.device)
    row, column = height // 2, width // 2
    gain[max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1] = factor
    spectrum = torch.fft.ifftshift(spectrum * gain, dim=(-2, -1))
    return torch.fft.ifftn(spectrum, dim=(-2, -1)).real.to(x.dtype)
