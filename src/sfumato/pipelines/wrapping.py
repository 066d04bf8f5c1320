"""What the flow puts around a network besides its pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sfumato.pipelines.flow import Drawing, Network


def rounding(network: Network, dtype: torch.dtype) -> Network:
    """A network that takes and gives latents of any precision, and computes in this one."""

    def rounded(x: Tensor, timestep: Tensor, context: Any, **inputs: Any) -> Tensor:
        return network(x.to(dtype), timestep, context, **inputs).to(x.dtype)

    return rounded


def without_negative(drawing: Drawing, network: Network) -> Network:
    """A network that is told the prompts alone once a callback has ended guidance."""

    def alone(x: Tensor, timestep: Tensor, context: Any, **inputs: Any) -> Tensor:
        if context is not None and not drawing.guided and len(context) > drawing.pictures:
            context = context.split(drawing.pictures)[drawing.block or 0]
        return network(x, timestep, context, **inputs)

    return alone
