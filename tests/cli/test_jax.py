"""The command with ``--backend jax``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.cli import jax_drawing
from tests.command import Run

jax = pytest.mark.skipif(find_spec("jax") is None, reason="needs the extra jax")
WORDS = ("a red apple", "--steps", 3, "--seed", 5, "--size", "16x16")


def drawn(run: Run, model: Path, *words: object) -> np.ndarray:
    said = run(*WORDS, "--model", model, *words)
    assert said.code == 0, said.err
    return np.asarray(Image.open(said.out.strip()), np.float32)


@jax
def test_the_picture_is_that_of_the_other_backends(run: Run, model: Path) -> None:
    by_jax, by_numpy = (drawn(run, model, "--backend", b) for b in ("jax", "numpy"))
    assert np.abs(by_jax - by_numpy).max() <= 1


@jax
def test_bfloat16_is_taken(run: Run, model: Path) -> None:
    words = ("--backend", "jax", "--dtype", "bfloat16")
    assert np.abs(drawn(run, model, *words) - drawn(run, model)).mean() < 8


def test_what_it_has_not_is_refused(run: Run, model: Path) -> None:
    said = run(*WORDS, "--model", model, "--backend", "jax", "--tiling", "x")
    assert said.code != 0 and "The backend jax has no --tiling" in said.err


def test_where_it_is_absent_the_extra_is_named(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax_drawing, "find_spec", lambda name: None)
    said = run(*WORDS, "--model", model, "--backend", "jax")
    assert said.code != 0 and "pip install 'sfumato[jax]'" in said.err
