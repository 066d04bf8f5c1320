"""The command with ``--backend openvino``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.runtime import engines
from tests.command import Run

openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="needs the extra openvino")
WORDS = ("a red apple", "--steps", 3, "--seed", 5, "--size", "16x16")


def drawn(run: Run, model: Path, *words: object) -> np.ndarray:
    said = run(*WORDS, "--model", model, *words)
    assert said.code == 0, said.err
    return np.asarray(Image.open(said.out.strip()), np.float32)


@openvino
def test_the_picture_is_that_of_the_other_backends(run: Run, model: Path) -> None:
    by_openvino, by_numpy = (drawn(run, model, "--backend", b) for b in ("openvino", "numpy"))
    assert np.abs(by_openvino - by_numpy).max() <= 1


@openvino
def test_bfloat16_and_threads_are_taken(run: Run, model: Path) -> None:
    words = ("--backend", "openvino", "--dtype", "bfloat16", "--threads", 1)
    assert np.abs(drawn(run, model, *words) - drawn(run, model)).mean() < 8


def test_what_it_has_not_is_refused(run: Run, model: Path) -> None:
    said = run(*WORDS, "--model", model, "--backend", "openvino", "--tiling", "x")
    assert said.code != 0 and "The backend openvino has no --tiling" in said.err


def test_where_it_is_absent_the_extra_is_named(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    said = run(*WORDS, "--model", model, "--backend", "openvino")
    assert said.code != 0 and "pip install 'sfumato[openvino]'" in said.err
