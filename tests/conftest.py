"""Settings for all tests: no hub is asked for anything, a slow machine is no failure, and a test
draws the same random numbers whichever ran before it."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the oracles are imported
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# Most of the time of JAX's tests is compiling, and this halves it.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
if "PYTEST_XDIST_WORKER" in os.environ:  # as many tests run at a time as there may be threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from sfumato import assets
from sfumato.cli import main
from tests.command import Run, Said

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def the_same_random_numbers() -> None:
    """Weights that an oracle draws from torch's own generator do not depend on the tests before."""
    random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what the command does to the package's logger, whoever called it."""
    log = logging.getLogger("sfumato")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture
def run(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """``run("a cat", "--steps", 3)``: the command in this process, in an empty folder."""
    for name in [name for name in os.environ if name.startswith("SFUMATO_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    terminate = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> Said:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Said(code, captured.out, captured.err)

    yield call
    signal.signal(signal.SIGTERM, terminate)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model."""
    from tests.pipelines.tiny import tiny_pipeline

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def embedded(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The tiny model as the embedded one."""
    package = tmp_path / "package"
    shutil.copytree(model, package / "model")
    assets.write_manifest(package / "model")
    monkeypatch.setattr(assets, "_FOLDER", package)
    return package / "model"
