"""Checkpoints appear whole or not at all, and a resume repeats what was asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sfumato.checkpoints import atomic
from sfumato.errors import CheckpointError, ConfigError
from sfumato.training import checkpoint
from sfumato.training.checkpoint import agree_on_config, load_checkpoint, save_checkpoint


def state(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {part: {"w": torch.full((3,), value)} for part in checkpoint.PARTS}


def test_the_newest_checkpoint_is_loaded(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    for step in (5, 10, 100):
        save_checkpoint(tmp_path, step, state(step))
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 100
    assert torch.equal(found[1]["moments"]["w"], torch.full((3,), 100.0))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000005"]


@pytest.mark.parametrize("damage", ["truncated", "missing", "no state", "half state"])
def test_an_incomplete_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, 1, state(1))
    newest = save_checkpoint(tmp_path, 2, state(2))
    weights = newest / "masters.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "missing":
        weights.unlink()
    elif damage == "no state":
        (newest / "state.json").unlink()
    else:
        (newest / "state.json").write_text('{"step": 2')
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 1


def test_a_failure_while_writing_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, state(1))

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    for module, stage in ((checkpoint, "save_file"), (atomic, "fsync_path")):
        with monkeypatch.context() as patch:
            patch.setattr(module, stage, fail)
            with pytest.raises(OSError, match="No space"):
                save_checkpoint(tmp_path, 2, state(2))
        found = load_checkpoint(tmp_path)
        assert found is not None
        assert found[0] == 1
    save_checkpoint(tmp_path, 2, state(2))
    leftovers = [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith(".")]
    assert leftovers == []


def test_a_damaged_file_of_the_right_size_is_named(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 1, state(1))
    weights = folder / "masters.safetensors"
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    with pytest.raises(CheckpointError, match="step-00000001"):
        load_checkpoint(tmp_path)


def test_a_resume_with_other_settings_lists_the_differences(tmp_path: Path) -> None:
    asked = {"batch_size": 4, "seed": 1, "steps": 10}
    agree_on_config(tmp_path, asked)
    agree_on_config(tmp_path, asked)
    agree_on_config(tmp_path, {**asked, "steps": 20})
    with pytest.raises(ConfigError, match=r"batch_size: 4 there, 8 asked; seed: 1 there, 2 asked"):
        agree_on_config(tmp_path, {**asked, "batch_size": 8, "seed": 2})
    assert json.loads((tmp_path / "config.json").read_text()) == asked


def test_a_new_run_starts_where_nothing_is(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    agree_on_config(run, {"a": (1, 2)})
    agree_on_config(run, {"a": [1, 2]})
    shutil.rmtree(run)
    assert load_checkpoint(run) is None
