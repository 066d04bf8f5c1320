"""The benchmark of forms in JAX: what is called naive computes what sfumato's forms compute."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("jax")

from benchmarks import jax_forms


def test_all_ways_of_an_operation_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_forms, "LEVELS", ((32, 8),))
    table = jax_forms.operations("float32")
    assert len(table) == 5
    for name, (arrays, ways) in table.items():
        expected = np.asarray(ways["naive"](*arrays))
        for way, compute in ways.items():
            found = np.asarray(compute(*arrays))
            assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max(), (name, way)


def test_a_row_tells_times_and_their_ratio() -> None:
    times = {"naive": 0.06, "NCHW": 0.05, "sfumato": 0.02}
    assert (
        jax_forms.row("here", times) == "here | naive 60.0 | NCHW 50.0 | sfumato 20.0 | 3.0 times"
    )
    arrays, ways = [np.ones(3, np.float32)], {"naive": lambda x: x + 1, "sfumato": lambda x: x * 2}
    found = jax_forms.measured(arrays, ways, rounds=2)
    assert all(0 < seconds < 60 for seconds in found.values())
