"""Configurations out of a folder in diffusers' layout, in place of those of a model's family.

Of such a folder only the configurations, the tokenizer's vocabulary and nothing else is read, and
of a model on the hub nothing else is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sfumato.checkpoints.hub import HubModel, local_copy
from sfumato.checkpoints.hub_names import HubOptions
from sfumato.checkpoints.model_index import INDEX_NAME
from sfumato.checkpoints.original.families import family_of_repository
from sfumato.checkpoints.places import model_root, read_config
from sfumato.errors import ModelNotFoundError

_FILES = {"scheduler": "scheduler_config.json", "low_res_scheduler": "scheduler_config.json"}


def local_config(given: Any, hub: HubOptions) -> Any:
    """The folder with the configurations of a model on the hub; all else as it is.

    A revision is that of the file that is loaded, not of this model. Models whose configurations
    come with the package are not looked for.

    Raises:
        SfumatoError: the hub does not give them.
    """
    if not isinstance(given, str) or family_of_repository(given) is not None:
        return given
    return local_copy(given, replace(hub, revision=None), _descriptions)


def _descriptions(model: HubModel) -> list[str]:
    names = {INDEX_NAME, "config.json", *_FILES.values()}
    found = [f for f in model.files if f.rpartition("/")[2] in names or f.startswith("tokenizer/")]
    return found or [INDEX_NAME]  # of which it will be said that it is missing


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
