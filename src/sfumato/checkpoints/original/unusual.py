"""What the shapes of a file do not tell of a network, such as the groups of its norms.

Files in the original layout have no configurations: readers take what they cannot see from the
published models. Where ours differ from these, saving notes it in the file's metadata, and loading
reads that. Programs that know nothing of the note draw something else, which saving warns of.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sfumato.checkpoints.original.loading import OriginalCheckpoint, open_checkpoint
from sfumato.checkpoints.original.notes import KEY
from sfumato.config import Config
from sfumato.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

#: What says nothing about how a network computes.
_HARMLESS = {"sample_size", "dropout", "attention_dropout", "projection_dim"}


def note(networks: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The entry of the metadata for networks that a reader of their tensors would take for others.

    Args:
        networks: by component, with their configurations.
        tensors: of the file to be.
    """
    component = next(iter(networks)) if len(networks) == 1 else None
    try:
        checkpoint = open_checkpoint(dict(tensors), component=component)
        found = {
            name: _differences(network, name, checkpoint) for name, network in networks.items()
        }
    except CheckpointError:  # of no published kind: there is nothing to go by
        return {}
    found = {name: fields for name, fields in found.items() if fields}
    changed = sorted({field for fields in found.values() for field in fields} - _HARMLESS)
    if changed:
        logger.warning(
            "The networks differ from published ones in %s. The file says so in its metadata, which"
            " sfumato reads; other programs will draw something else with it.",
            ", ".join(changed),
        )
    return {KEY: json.dumps(found)} if found else {}


def _differences(network: Any, component: str, checkpoint: OriginalCheckpoint) -> dict[str, Any]:
    """The fields of a network's configuration that a reader would take to be others."""
    config = getattr(network, "own_config", getattr(network, "config", None))
    if not isinstance(config, Config):
        return {}
    try:
        taken = type(config).from_dict(checkpoint.config(component)).to_dict()
    except ConfigError:  # what a reader would take does not even go with the shapes
        return config.to_dict()
    return {name: value for name, value in config.to_dict().items() if taken.get(name) != value}
