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

from tests.pipelines.tiny import tiny_pipeline

pytest.importorskip("jax")

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
    tiny_pipeline().save_pretrained(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    folder = str(tmp_path / "model")
    files = [tmp_path / name for name in ("first.npz", "second.npz", "alone.npz")]
    wait([start(2, folder, str(files[n]), address, "2", str(n)) for n in range(2)])
    wait([start(4, folder, str(files[2]))])
    first, second, alone = (dict(np.load(file)) for file in files)
    assert first["devices"].tolist() == second["devices"].tolist() == [4, 2]

    def far(a: Any, b: Any) -> float:
        return float(np.abs(a - b).max())

    for form in ("compiled", "spread parameters", "checked"):
        assert alone[form].shape == (4, 16, 16, 3)
        assert far(first[form], alone[form]) < 1e-5, form
        assert far(second[form], alone[form]) < 1e-5, form
    assert not first["checked"][1].any()
    assert first["checked"][2].any()
    assert far(first["own"], alone["own"]) < 1e-5
    assert far(first["own"], second["own"]) > 1e-3
