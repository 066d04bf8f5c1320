"""diffusers' pipeline with the weights of ours, as the oracle for whole calls."""

from __future__ import annotations

import tempfile
from functools import cache
from typing import Any

import diffusers
import torch
import transformers

from tests.pipelines.tiny import tokenizer


@cache
def oracle_tokenizer() -> Any:
    """transformers' tokenizer, loaded from a folder that ours wrote."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer().save_pretrained(folder)
        return transformers.CLIPTokenizerFast.from_pretrained(folder)


def oracle_scheduler(scheduler: Any) -> Any:
    """diffusers' scheduler of the same class and configuration."""
    return getattr(diffusers, type(scheduler).__name__).from_config(dict(scheduler.config))


def oracle_network(network: Any) -> Any:
    """The oracle's network of the same class, configuration and weights."""
    name, config = type(network).__name__, network.config.to_dict()
    if hasattr(transformers, name):
        oracle = getattr(transformers, name)(transformers.CLIPTextConfig(**config))
    else:
        oracle = getattr(diffusers, name).from_config(config)
    oracle.load_state_dict(network.state_dict(), strict=True)
    return oracle.eval()


def oracle_of(pipeline: Any, **given: Any) -> Any:
    """diffusers' pipeline of the same class with the same weights, or with components given."""
    ours = {name: part for name, part in pipeline.components.items() if name not in given}
    parts = {name: _oracle_part(name, part) for name, part in ours.items()} | given
    settings = pipeline._signature()[1]
    oracle = getattr(diffusers, type(pipeline).__name__)(
        **parts, **{name: pipeline.config[name] for name in settings}
    )
    oracle.set_progress_bar_config(disable=True)
    return oracle


def _oracle_part(name: str, part: Any) -> Any:
    if isinstance(part, torch.nn.Module):
        return oracle_network(part)
    if name == "tokenizer":
        return oracle_tokenizer()
    return oracle_scheduler(part) if name.endswith("scheduler") else part


def distance(ours: torch.Tensor, oracle: torch.Tensor) -> float:
    """The largest difference, relative to the largest value or 1."""
    assert ours.shape == oracle.shape
    assert ours.dtype == oracle.dtype
    return ((ours - oracle).abs().max() / oracle.abs().max().clamp(min=1)).item()
