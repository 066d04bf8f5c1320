"""Outputs read like objects, mappings and tuples."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils import _pytree

from sfumato.models.autoencoder import DecoderOutput
from sfumato.outputs import BaseOutput


@dataclass
class Pair(BaseOutput):
    first: Any
    second: Any = None
    third: Any = None


def test_fields_are_read_by_attribute_key_and_position() -> None:
    out = Pair(1, None, 3)
    assert (out.first, out["first"], out[0]) == (1, 1, 1)
    assert out.second is None
    assert "second" not in out
    assert out[1] == out["third"] == 3
    assert out[:2] == out.to_tuple() == (1, 3)
    assert dict(out) == {"first": 1, "third": 3}
    with pytest.raises(KeyError):
        out["second"]


def test_values_change_but_fields_stay() -> None:
    out = Pair(1, 2)
    out.first = 10
    out["second"] = 20
    assert (out["first"], out.second, out[:]) == (10, 20, (10, 20))
    for change in (
        lambda: out.pop("first"),
        lambda: out.update(first=0),
        lambda: out.setdefault("third", 0),
        lambda: out.__delitem__("first"),
        lambda: out.clear(),
    ):
        with pytest.raises(TypeError, match="Pair"):
            change()
    assert list(out) == ["first", "second"]


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_a_copy_has_the_same_fields(clone: Any) -> None:
    out = clone(Pair(1, None, [3]))
    assert isinstance(out, Pair)
    assert (out.first, out.second, out.third, len(out)) == (1, None, [3], 2)


def test_outputs_are_trees_to_torch() -> None:
    out = Pair(torch.ones(2), None, {"a": torch.zeros(1)})
    doubled = _pytree.tree_map(lambda t: t + 1, out)
    assert isinstance(doubled, Pair)
    assert doubled.first.tolist() == [2, 2]
    assert doubled.second is None
    assert doubled["third"]["a"].item() == 1
    assert len(_pytree.tree_leaves(DecoderOutput(torch.ones(1)))) == 1


def test_outputs_need_no_torch_until_a_network_is_imported() -> None:
    code = """
import sys
from dataclasses import dataclass
from sfumato.outputs import BaseOutput
@dataclass
class Early(BaseOutput):
    x: object
assert "torch" not in sys.modules
import sfumato.models.base
from torch.utils import _pytree
assert _pytree.tree_leaves(Early(5)) == [5]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
