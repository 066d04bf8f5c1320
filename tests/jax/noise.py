"""The noise of JAX for a sampler in torch, since both draw theirs from different sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import torch


class Bank:
    """A source of noise for torch: what a JAX pipeline adds in the rows of a plan that draw.

    Args:
        key: that the JAX pipeline is given; a row draws of it and of its number.
        plan: of the sampler.
        shape: of the latents.
    """

    def __init__(self, key: Any, plan: Any, shape: tuple[int, ...]) -> None:
        rows = np.flatnonzero(plan.draws)
        keys = (jax.random.fold_in(key, int(row)) for row in rows)
        self._left = [np.array(jax.random.normal(one, shape)) for one in keys]

    def draw(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> torch.Tensor:
        one = self._left.pop(0)
        assert one.shape == tuple(shape)
        return torch.from_numpy(one).to(device, dtype)
