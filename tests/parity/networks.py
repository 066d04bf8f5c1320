"""Helpers that compare a network with its oracle on the same random weights."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn


def share_weights(oracle: nn.Module, ours: nn.Module, seed: int) -> None:
    """Give both the same random weights, through a strict load in both directions.

    Norms and biases are perturbed: at their initial ones and zeros, a swapped or forgotten one
    would not show.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in oracle.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    ours.load_state_dict(oracle.state_dict(), strict=True)
    oracle.load_state_dict(ours.state_dict(), strict=True)
    oracle.eval()
    ours.eval()


def relative_error(ours: Tensor, oracle: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert ours.shape == oracle.shape
    assert ours.dtype == oracle.dtype
    return ((ours - oracle).abs().max() / oracle.abs().max()).item()


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def sometimes(rng: random.Random, probability: float, fields: dict[str, Any]) -> dict[str, Any]:
    """These fields with some probability, none otherwise."""
    return fields if rng.random() < probability else {}
