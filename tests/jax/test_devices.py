"""Many devices give the pictures that one gives, in the forms of today and of former days."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sfumato.errors import InputError
from tests.jax.small import small_pipeline

pytest.importorskip("jax")

from sfumato.jax.devices import make_mesh, replicate, shard, unreplicate

ROOT = Path(__file__).parents[2]


def test_eight_virtual_devices_draw_what_one_draws(tmp_path: Path) -> None:
    small_pipeline().save_pretrained(tmp_path / "model")
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "tests.jax.eight_devices", str(tmp_path / "model")],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for form in ("mesh", "model", "seed", "pmap", "keys", "unsplit", "kernels"):
        assert found[form] < 1e-5, (form, found)
    assert found["devices"] == 8
    assert found["gathered"] == 0  # each device computes its own pictures
    assert found["shape"] == [8, 1, 16, 16, 3]
    assert "A batch of 3 pictures cannot be shared out among 4 devices" in found["refused"]


def test_arrays_gain_and_lose_their_axis_of_devices() -> None:
    import numpy as np

    tree = {"a": np.arange(6).reshape(6, 1)}
    assert shard(tree, 3)["a"].shape == (3, 2, 1)
    assert replicate(tree, 3)["a"].shape == (3, 6, 1)
    assert (unreplicate(replicate(tree, 3))["a"] == tree["a"]).all()
    with pytest.raises(InputError, match="A batch of 6 cannot be shared out among 4"):
        shard(tree, 4)


def test_a_mesh_of_more_devices_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="There are 1 devices; 9 of them"):
        make_mesh(9)
