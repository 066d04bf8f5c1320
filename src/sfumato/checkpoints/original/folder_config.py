"""Configurations out of a folder in diffusers' layout, in place of those of a model's family.

Of such a folder only the configurations, the tokenizer's vocabulary and nothing else is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.checkpoints.model_index import INDEX_NAME
from sfumato.checkpoints.places import model_root, read_config
from sfumato.errors import ModelNotFoundError

_FILES = {"scheduler": "scheduler_config.json", "low_res_scheduler": "scheduler_config.json"}


@dataclass(frozen=True)
class FolderConfig:
    """A pipeline's folder, or the folder of a single network."""

    path: Path

    @property
    def is_pipeline(self) -> bool:
        """Whether the folder is of a whole pipeline."""
        return (self.path / INDEX_NAME).is_file()

    def values(self, component: str) -> dict[str, Any]:
        """The configuration of a component.

        Raises:
            ModelNotFoundError: there is none.
            ConfigError: it is wrong.
        """
        root = model_root(self.path)
        name = _FILES.get(component, "config.json")
        for folder in (root / component, root):
            if (folder / name).is_file():
                return read_config(folder, name, root)
        raise ModelNotFoundError(f"The folder '{self.path}' has no `{component}/{name}`.")
