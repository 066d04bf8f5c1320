"""Checkpoints of a training run: whole folders that appear by one rename, or not at all.

    run/
      config.json              what was asked for; a resume must ask for the same
      checkpoints/
        step-00002000/
          state.json           the step, and the size of every file beside it
          masters.safetensors  float32 weights
          averages.safetensors their exponential moving average
          moments.safetensors  AdamW's state

A folder without ``state.json``, or whose files do not have the sizes it lists, is not complete
and is passed over.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.checkpoints.atomic import atomic_directory, write_file_atomically
from sfumato.errors import CheckpointError, ConfigError

#: Settings that may change on resume: they do not alter what was learnt so far.
CHANGEABLE = frozenset({"steps", "checkpoint_every", "keep_checkpoints"})
PARTS = ("masters", "averages", "moments")
State = Mapping[str, Mapping[str, Tensor]]


def save_checkpoint(run: Path, step: int, state: State, *, keep: int = 2) -> Path:
    """Write the state after ``step`` finished steps and drop all but the newest ``keep``."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    for left_by_a_kill in folder.parent.glob(".step-*.tmp"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    with atomic_directory(folder) as draft:
        sizes = {}
        for part in PARTS:
            path = draft / f"{part}.safetensors"
            save_file({k: v.contiguous() for k, v in state[part].items()}, path)
            sizes[path.name] = path.stat().st_size
        (draft / "state.json").write_text(json.dumps({"step": step, "sizes": sizes}, indent=2))
    for _, old in _complete(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_checkpoint(run: Path) -> tuple[int, dict[str, dict[str, Tensor]]] | None:
    """The newest complete checkpoint as (finished steps, state); None when there is none."""
    found = _complete(run)
    if not found:
        return None
    step, folder = found[-1]
    try:
        return step, {part: load_file(folder / f"{part}.safetensors") for part in PARTS}
    except Exception as error:  # safetensors raises its own type, and OSError when a file goes away
        raise CheckpointError(
            f"'{folder}' cannot be read: {error}.", hint="Delete this folder to resume before it."
        ) from error


def agree_on_config(run: Path, config: Mapping[str, Any]) -> None:
    """Record ``config`` in a new run, or check that a resumed one asks for the same.

    Raises:
        ConfigError: lists every difference; a run never restarts silently with other settings.
    """
    path = run / "config.json"
    asked = json.loads(json.dumps(config))
    if not path.exists():
        run.mkdir(parents=True, exist_ok=True)
        write_file_atomically(path, json.dumps(asked, indent=2))
        return
    recorded = json.loads(path.read_text())
    differences = [
        f"{key}: {recorded.get(key)!r} there, {asked.get(key)!r} asked"
        for key in sorted({*recorded, *asked})
        if key not in CHANGEABLE and recorded.get(key) != asked.get(key)
    ]
    if differences:
        raise ConfigError(
            f"'{run}' was started with other settings: {'; '.join(differences)}.",
            hint="Resume with the same settings, or name another --output folder.",
        )


def _complete(run: Path) -> list[tuple[int, Path]]:
    found = []
    for folder in sorted((run / "checkpoints").glob("step-*")):
        try:
            state = json.loads((folder / "state.json").read_text())
            sizes = state["sizes"].items()
            whole = all((folder / name).stat().st_size == size for name, size in sizes)
        except (OSError, ValueError, KeyError):
            continue
        if whole:
            found.append((int(state["step"]), folder))
    return found
