"""Comparing the interfaces of pipelines: parameters, defaults, class attributes, complaints."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import pytest


def assert_same_signatures(ours: type, *methods: str) -> None:
    """Raise unless methods have the same parameters and defaults as in diffusers' class.

    Ours may take further keywords.
    """
    oracle = getattr(diffusers, ours.__name__)
    for method in methods:
        mine = dict(inspect.signature(getattr(ours, method)).parameters)
        theirs = inspect.signature(getattr(oracle, method)).parameters
        if "kwargs" not in theirs:
            mine.pop("kwargs", None)
        assert list(mine) == list(theirs), method
        for parameter, other in zip(mine.values(), theirs.values(), strict=True):
            assert parameter.kind == other.kind, (method, parameter.name)
            expected = tuple(other.default) if isinstance(other.default, list) else other.default
            assert parameter.default == expected, (method, parameter.name)


def assert_same_attributes(ours: type) -> None:
    """Raise unless the class attributes that users and loaders read are diffusers'."""
    oracle = getattr(diffusers, ours.__name__)
    for name in (
        "model_cpu_offload_seq",
        "_optional_components",
        "_exclude_from_cpu_offload",
        "_callback_tensor_inputs",
    ):
        if hasattr(oracle, name):
            assert getattr(ours, name) == getattr(oracle, name), name


def assert_same_complaint(pair: tuple[Any, Any], arguments: Mapping[str, Any]) -> None:
    """Raise unless both raise an error of the same kind that begins with the same words."""
    messages: list[str] = []
    types: list[type[Exception]] = []
    for pipeline in pair:
        with pytest.raises((ValueError, TypeError)) as caught:
            pipeline(**arguments)
        types.append(caught.type)
        messages.append(str(caught.value))
    assert issubclass(types[0], types[1])
    start = messages[1].split(".")[0].split(":")[0].split("<class")[0][:120].rstrip()
    assert messages[0].startswith(start), messages
