"""The table of bad input names tests that exist, and none of its rows is left out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROWS = dict(re.findall(r"^\| (\d+) \| (.*) \|$", (HERE / "README.md").read_text(), re.M))


@cache
def names_in(name: str) -> frozenset[str]:
    """The names of the tests in a file of this folder or, with a folder in its name, of another."""
    path = HERE.parent / name if "/" in name else HERE / name
    tree = ast.parse(path.read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_the_table_has_all_rows() -> None:
    assert [int(row) for row in ROWS] == [*range(1, 54), 56, 83]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_tests_that_exist(row: str) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", ROWS[row])
    assert named
    assert [f"{file}::{test}" for file, test in named if test not in names_in(file)] == []
