"""Networks and calls for tests of the engine "compile"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sfumato.adapters.families import LowRank
from sfumato.adapters.network import Adapter

LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
TEXT = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(2))
#: As few layers as show everything.
SMALL = {
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "block_out_channels": (32,),
    "mid_block_type": None,
}
#: With a bias of one number.
ONE = {**SMALL, "out_channels": 1}


def predict(net: Any, latents: torch.Tensor = LATENTS) -> torch.Tensor:
    with torch.no_grad():
        return net(latents, 500, TEXT[: len(latents)].to(latents.dtype), return_dict=False)[0]


def by_torch(net: Any, call: Callable[[], torch.Tensor]) -> torch.Tensor:
    engine, net.engine = net.engine, None
    try:
        return call()
    finally:
        net.engine = engine


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def lora(net: Any, ending: str = "to_q") -> Adapter:
    made = {}
    for path, layer in net.named_modules():
        if path.endswith(ending):
            rows, columns = layer.weight.shape
            down, up = torch.randn(2, columns), torch.randn(rows, 2)
            made[path] = LowRank(down=down, up=up, scale=0.5)
    assert made
    return Adapter(made)
