"""A small UNet with adapters: put one on, and see what it changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfumato.adapters.files import AdapterFile
from sfumato.adapters.loading import load
from tests.adapters.files_like import (
    kohya_file,
)

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
TEXT = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def out(unet: Any, x: Tensor = X, text: Tensor = TEXT, **kwargs: Any) -> Tensor:
    return unet(x, 10, text, **kwargs).sample


def put(unet: Any, name: str, family: str = "lora", seed: int = 0, **kwargs: Any) -> None:
    load({"unet": unet}, AdapterFile(kohya_file({"unet": unet}, family, seed)), name, **kwargs)


def distance(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()
