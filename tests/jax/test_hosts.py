"""Several processes, as on several hosts, draw together what one process draws."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jax.small import small_pipeline

jax = pytest.importorskip("jax")

from sfumato.jax.pipeline import FlaxStableDiffusionPipeline  # noqa: E402
from tests.jax.two_hosts import PROMPTS  # noqa: E402

ROOT = Path(__file__).parents[2]


def start(devices: int, *arguments: str) -> subprocess.Popen[str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.jax.two_hosts", *arguments],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait(processes: list[subprocess.Popen[str]]) -> None:
    try:
        for process in processes:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said[-2000:]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(tmp_path: Path) -> None:
    small_pipeline().save_pretrained(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    files = [tmp_path / name for name in ("first.npz", "second.npz")]
    wait([start(2, str(tmp_path / "model"), str(files[n]), address, "2", str(n)) for n in range(2)])
    first, second = (dict(np.load(file)) for file in files)
    assert first["devices"].tolist() == second["devices"].tolist() == [4, 2]

    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(tmp_path / "model")
    ids, key = pipeline.prepare_inputs(PROMPTS), jax.random.PRNGKey(0)
    alone = np.array(pipeline(ids, params, key, 2, jit=True).images)
    assert alone.shape == (4, 16, 16, 3)

    def far(a: Any, b: Any) -> float:
        return float(np.abs(a - b).max())

    for found in (first, second):
        assert far(found["compiled"], alone) < 1e-5
        assert far(found["spread parameters"], alone) < 1e-5
    keys = jax.random.split(key, 2)
    for number, found in enumerate((first, second)):
        for device in range(2):
            one = ids[2 * number + device :][:1]
            own = pipeline(one, params, keys[device], 2, jit=True).images[0]
            assert far(found["own"][device], own) < 1e-5
    assert far(first["own"], second["own"]) > 1e-3
    alone[1] = 0
    assert first["checked"][2].any()
    assert far(first["checked"], alone) < 1e-5
    assert far(second["checked"], alone) < 1e-5
