"""A run killed with SIGKILL and resumed ends with the same bits as one left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sfumato.training.checkpoint import load_checkpoint

STEPS = 16
CODE = "import sys; from sfumato.cli import main; sys.exit(main())"


def command(kind: str, pictures: Path, run: Path, architecture: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-c", CODE, "train", kind, str(pictures), "--output", str(run)),
        *("--architecture", str(architecture), "--image-size", "32", "--steps", str(STEPS)),
        *("--batch-size", "3", "--checkpoint-every", "4", "--sample-every", "0"),
        *("--threads", "1", "--seed", "7", *more),
    ]


def start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(arguments: Sequence[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def kill_after(arguments: Sequence[str], log: Path, lines: int) -> None:
    process = start(arguments)
    while process.poll() is None:
        if log.exists() and log.read_bytes().count(b"\n") >= lines:
            break
        time.sleep(0.001)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def final_state(run: Path) -> dict[str, torch.Tensor]:
    found = load_checkpoint(run)
    assert found is not None
    assert found[0] == STEPS
    return {f"{part}/{key}": t for part, tensors in found[1].items() for key, t in tensors.items()}


@pytest.fixture(scope="module")
def autoencoder(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, architecture: Path
) -> tuple[Path, Path]:
    """An uninterrupted run of the first stage, and the model that it made."""
    run = tmp_path_factory.mktemp("vae")
    finish(command("autoencoder", pictures, run, architecture, "--crop-size", "16"))
    return run, run / "model"


def test_a_killed_autoencoder_run_resumes_bit_equal(
    autoencoder: tuple[Path, Path], pictures: Path, architecture: Path, tmp_path: Path
) -> None:
    arguments = command("autoencoder", pictures, tmp_path, architecture, "--crop-size", "16")
    kill_after(arguments, tmp_path / "log.jsonl", random.randint(2, STEPS - 6))
    finish(arguments)
    whole, resumed = final_state(autoencoder[0]), final_state(tmp_path)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    steps = [json.loads(x)["step"] for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(STEPS))


def test_a_twice_killed_text_to_image_run_resumes_bit_equal(
    autoencoder: tuple[Path, Path], pictures: Path, architecture: Path, tmp_path: Path
) -> None:
    more = ("--autoencoder", str(autoencoder[1]))
    whole_run, run = tmp_path / "whole", tmp_path / "killed"
    finish(command("text-to-image", pictures, whole_run, architecture, *more))
    arguments = command("text-to-image", pictures, run, architecture, *more)
    first = random.randint(2, STEPS // 2 - 4)
    for lines in (first, first + 8):
        kill_after(arguments, run / "log.jsonl", lines)
    finish(arguments)
    whole, resumed = final_state(whole_run), final_state(run)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert (run / "model" / "model_index.json").exists()
